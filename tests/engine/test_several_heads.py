"""Multi-head training end to end: each head equals that of a single-head run, bit for bit, in an ordinary bundle."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.bundle import find_bundle, find_bundles, read_card
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import BundleError, ConfigError, DataError, RunError

HEADS = {"rooms": "segmentation", "parts": "segmentation", "depth": "depth", "detection": "detection"}
SCORES = {"segmentation": ("miou", 1), "depth": ("rmse", -1), "detection": ("box_ap", 1)}
ORDER = ["depth", "detection", "parts", "rooms"]
SHARED = SMALL_RUN | {
    "steps": 4,
    "image_scale": (64, 48),
    "eval_every": 2,
    "batch_size": 4,
    "accumulate": 2,
    "ema": 0.5,
}
OWN = {
    # Everything that could leak between heads: random numbers (dropout, sampled proposals), clipping, layers.
    "rooms": {"dropout": 0.3, "lr": 1e-3},
    "parts": {"dropout": 0.2, "num_tuned_layers": 1, "dice_weight": 0.5},
    "depth": {"clip_norm": 0.5, "num_prior_layers": 2, "test_flip": False},
    "detection": {"masks": "off", "pyramid_width": 16, "selection": "gate"},
}


@pytest.fixture(scope="module")
def one_thread():
    """A fixed number of threads, so that sums have a fixed order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(scenes, tmp_path_factory):
    """The data set of each head: the same images; the two segmentation heads have different classes."""
    parts = tmp_path_factory.mktemp("parts") / "data"
    shutil.copytree(scenes, parts)
    for file in (parts / "masks").rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(file)) % 2).astype(np.uint8)).save(file)
    (parts / "classes.json").write_text('["even", "odd"]')
    return {name: parts if name == "parts" else scenes for name in HEADS}


def train(folders, out: Path, names=tuple(HEADS), **settings):
    data = {name: (HEADS[name], folders[name]) for name in names}
    return vitsplit.train(data=data, out=out, **SHARED, **{name: OWN[name] for name in names}, **settings)


@pytest.fixture(scope="module")
def joint(folders, tmp_path_factory, one_thread) -> Path:
    return train(folders, tmp_path_factory.mktemp("joint") / "run").run


def weights(run: Path, head: str = "", which: str = "last"):
    return load_file(run / which / head / "head.safetensors")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name


@pytest.mark.parametrize("name", HEADS)
def test_a_head_equals_that_of_a_single_head_run(joint, folders, tmp_path, one_thread, name):
    """Two segmentation heads, depth and detection: every weight equals that of the single-head run, bit for bit."""
    alone = train(folders, tmp_path / "alone", (name,))
    for which in ("last", "best"):
        assert_equal(weights(joint, name, which), weights(alone.run, name, which))
    card, own_card = (read_card(run / "best" / name) for run in (joint, alone.run))
    assert card == own_card


def test_segmentation_equals_a_run_without_class_aware_crops(joint, scenes, tmp_path, one_thread):
    settings = SHARED | OWN["rooms"] | {"max_class_ratio": 1.0, "scale_range": (0.75, 1.5)}
    own = vitsplit.train(data=scenes, out=tmp_path / "run", **settings)
    assert_equal(weights(joint, "rooms"), weights(own.run))
    card, own_card = read_card(joint / "best" / "rooms"), read_card(own.run)
    assert dataclasses.replace(card, config=None) == dataclasses.replace(own_card, config=None)
    assert card.config == own_card.config, "nothing tells that it was trained beside others"


def test_an_unnamed_head_is_named_after_its_task(scenes, tmp_path):
    result = vitsplit.train(data={"depth": scenes}, out=tmp_path / "run", **SHARED | {"steps": 1, "accumulate": 1})
    assert list(result.metrics) == ["depth"] and read_card(result.run / "best" / "depth").task == "depth"


def test_the_backbone_runs_once_per_micro_batch(folders, tmp_path, monkeypatch):
    from vitsplit.backbone.backbone import Backbone

    passes = []
    forward = Backbone.forward

    def counted(self, image_BCHW, request, extent_B2=None):
        passes.append(len(image_BCHW))
        return forward(self, image_BCHW, request, extent_B2)

    monkeypatch.setattr(Backbone, "forward", counted)

    def no_evaluation(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitsplit.engine.trainer.evaluate", no_evaluation)
    with pytest.raises(KeyboardInterrupt):
        train(folders, tmp_path / "run", ("rooms", "parts", "depth"))
    assert passes == [2, 2] * 2, "two steps of two micro-batches before the first evaluation"


def test_bundles_equal_those_of_single_head_runs(joint, folders):
    assert find_bundles(joint) == [joint / "best" / name for name in ORDER]
    image = next((folders["depth"] / "images" / "val").iterdir())
    together = vitsplit.load(joint)
    assert list(together) == ORDER
    for name, task in HEADS.items():
        card = read_card(joint / "best" / name)
        assert card.task == task and list(card.config.heads) == [task]
        predictor = vitsplit.load(joint / "best" / name)
        prediction = predictor.predict(image)[name].overlay()
        assert prediction.size == (64, 48)
        assert np.array_equal(prediction, together.predict(image)[name].overlay())
        evaluation, _ = vitsplit.evaluate(predictor, data=folders[name])
        score, sign = SCORES[task]
        assert evaluation.score == pytest.approx(sign * card.metrics[score], abs=1e-6)
    with pytest.raises(BundleError, match=r"4 head bundles.*best/rooms"):
        find_bundle(joint)


def test_the_best_bundle_is_kept_per_head(joint):
    rows = [json.loads(line) for line in (joint / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    for head, task in HEADS.items():
        name, sign = SCORES[task]
        best = max(evaluations, key=lambda row: sign * row["eval"][head][name])
        assert read_card(joint / "best" / head).metrics[name] == best["eval"][head][name]
        assert read_card(joint / "last" / head).metrics[name] == evaluations[-1]["eval"][head][name]
    assert {"rooms/lr", "parts/lr", "depth/loss_silog", "loss", "grad_norm"} <= rows[0].keys()


def test_the_page_links_to_the_page_of_every_head(joint):
    page = (joint / "pictures" / "index.html").read_text()
    for head in HEADS:
        assert f'href="{head}/index.html"' in page and (joint / "pictures" / head / "index.html").is_file()


@pytest.mark.parametrize("after", [3, 6])
def test_an_interrupted_run_resumes_exactly(joint, folders, tmp_path, monkeypatch, one_thread, after):
    class PowerCutError(Exception):
        pass

    left, collate = [after], RunTasks.collate

    def failing(self, samples):
        left[0] -= 1
        if left[0] < 0:
            raise PowerCutError
        return collate(self, samples)

    monkeypatch.setattr(RunTasks, "collate", failing)
    with pytest.raises(PowerCutError):
        train(folders, tmp_path / "run")
    monkeypatch.undo()
    # A temporary folder left by a kill while a bundle was replaced.
    (tmp_path / "run" / "best").mkdir(exist_ok=True)
    (tmp_path / "run" / "best" / ".depth.new").mkdir()
    if (tmp_path / "run" / "best" / "depth").exists():
        shutil.move(tmp_path / "run" / "best" / "depth", tmp_path / "run" / "best" / ".depth.old")
    data = {name: (HEADS[name], folders[name]) for name in HEADS}
    vitsplit.train(data=data, out=tmp_path / "run", resume=True, workers=after // 6)
    for task in HEADS:
        for which in ("last", "best"):
            assert_equal(weights(tmp_path / "run", task, which), weights(joint, task, which))
    assert not list((tmp_path / "run").rglob(".*"))


def test_other_settings_of_one_head_are_rejected_on_resume(joint, folders):
    with pytest.raises(RunError, match=r"depth\.optim\.lr: 0\.001 in the run, 0\.1 now"):
        data = {name: (HEADS[name], folders[name]) for name in HEADS}
        vitsplit.train(data=data, out=joint, resume=True, depth={"lr": 0.1})


def test_invalid_combinations_are_rejected(joint, scenes, tmp_path):
    with pytest.raises(ConfigError, match=r"--head .*vqa"):
        vitsplit.train(data={"vqa": scenes}, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="--scale-range"):
        vitsplit.train(data={"depth": scenes}, out=tmp_path / "run", scale_range=(2.0, 1.0), random_weights=True)
    with pytest.raises(ConfigError, match="recipe"):
        vitsplit.train(data={"depth": scenes}, recipe="ade20k-small", out=tmp_path / "run")


def test_images_missing_from_one_task_are_an_error_at_the_start(scenes, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(scenes, fewer)
    (fewer / "images" / "train" / "scene_00003.jpg").unlink()
    (fewer / "depth" / "train" / "scene_00003.png").unlink()
    with pytest.raises(DataError, match=r"depth .*1 of 6 .*scene_00003"):
        vitsplit.train(data={"segmentation": scenes, "depth": fewer}, out=tmp_path / "run", **SHARED)
