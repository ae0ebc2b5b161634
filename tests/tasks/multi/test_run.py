"""Joint runs from end to end: every head ends as it would alone, bit for bit, and is an ordinary bundle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vitsplit
from small_run import SMALL_RUN
from vitsplit.bundle import find_bundle, find_bundles, read_card
from vitsplit.engine.config import TrainConfig
from vitsplit.errors import BundleError, ConfigError, DataError, RunError
from vitsplit.tasks.multi.task import MultiTask

TASKS = ("segmentation", "depth", "detection")
SCORES = {"segmentation": ("miou", 1), "depth": ("rmse", -1), "detection": ("box_ap", 1)}
SHARED = SMALL_RUN | {
    "steps": 4,
    "image_scale": (64, 48),
    "eval_every": 2,
    "batch_size": 4,
    "accumulate": 2,
    "ema": 0.5,
}
OWN = {
    # Dropout and sampled proposals draw random numbers, clipping and layers differ: all that could leak between heads.
    "segmentation": {"dropout": 0.3, "lr": 1e-3},
    "depth": {"clip_norm": 0.5, "num_prior_layers": 2, "test_flip": False},
    "detection": {"masks": "off", "pyramid_width": 16, "selection": "gate"},
}


@pytest.fixture(scope="module")
def one_thread():
    """Sums in the same order, whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(scenes: Path, out: Path, tasks=TASKS):
    own = {name: OWN[name] for name in tasks}
    return vitsplit.train(data=dict.fromkeys(tasks, scenes), out=out, **SHARED, **own)


@pytest.fixture(scope="module")
def joint(scenes, tmp_path_factory, one_thread) -> Path:
    return train(scenes, tmp_path_factory.mktemp("joint") / "run").run


def weights(run: Path, task: str = "", which: str = "last"):
    return load_file(run / which / task / "head.safetensors")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.equal(found[name]), name


@pytest.mark.parametrize("task", TASKS)
def test_a_head_ends_as_in_a_joint_run_of_its_own(joint, scenes, tmp_path, one_thread, task):
    alone = train(scenes, tmp_path / "alone", (task,))
    for which in ("last", "best"):
        assert_equal(weights(joint, task, which), weights(alone.run, task, which))
    card, own_card = (read_card(run / "best" / task) for run in (joint, alone.run))
    assert card == own_card


def test_segmentation_ends_as_in_an_ordinary_run_that_draws_its_crops_blindly(joint, scenes, tmp_path, one_thread):
    settings = SHARED | OWN["segmentation"] | {"max_class_ratio": 1.0, "scale_range": (0.75, 1.5)}
    ordinary = vitsplit.train(data=scenes, out=tmp_path / "run", **settings)
    assert_equal(weights(joint, "segmentation"), weights(ordinary.run))
    card, own_card = read_card(joint / "best" / "segmentation"), read_card(ordinary.run)
    assert card == own_card, "even what it says of itself: nothing tells that it was trained beside others"


def test_the_backbone_runs_once_per_micro_batch(scenes, tmp_path, monkeypatch):
    from vitsplit.backbone.frozen import Backbone

    passes = []
    forward = Backbone.forward

    def counted(self, image_BCHW, request, extent_B2=None):
        passes.append(len(image_BCHW))
        return forward(self, image_BCHW, request, extent_B2)

    monkeypatch.setattr(Backbone, "forward", counted)

    def no_evaluation(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MultiTask, "evaluate", no_evaluation)
    with pytest.raises(KeyboardInterrupt):
        train(scenes, tmp_path / "run", ("segmentation", "depth"))
    assert passes == [2, 2] * 2, "two steps of two micro-batches before the first evaluation"


def test_bundles_are_ordinary_ones(joint, scenes):
    assert find_bundles(joint) == [joint / "best" / task for task in TASKS]
    image = next((scenes / "images" / "val").iterdir())
    for task in TASKS:
        card = read_card(joint / "best" / task)
        assert card.task == task and isinstance(card.config, TrainConfig)
        predictor = vitsplit.load(joint / "best" / task)
        assert predictor.predict(image).overlay().size == (64, 48)
        evaluation, _ = vitsplit.evaluate(predictor, data=scenes)
        name, sign = SCORES[task]
        assert evaluation.score == pytest.approx(sign * card.metrics[name], abs=1e-6)
    with pytest.raises(BundleError, match=r"3 head bundles here\. Name one of them: .*best/segmentation"):
        find_bundle(joint)


def test_every_head_keeps_its_own_best(joint):
    rows = [json.loads(line) for line in (joint / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row for row in rows if "eval" in row]
    assert [row["step"] for row in evaluations] == [2, 4]
    for task, (name, sign) in SCORES.items():
        best = max(evaluations, key=lambda row: sign * row["eval"][task][name])
        assert read_card(joint / "best" / task).metrics[name] == best["eval"][task][name]
        assert read_card(joint / "last" / task).metrics[name] == evaluations[-1]["eval"][task][name]
    assert {"segmentation/lr", "depth/loss_silog", "loss", "grad_norm"} <= rows[0].keys()


def test_a_page_leads_to_every_tasks_page(joint):
    page = (joint / "pictures" / "index.html").read_text()
    for task in TASKS:
        assert f'href="{task}/index.html"' in page and (joint / "pictures" / task / "index.html").is_file()


@pytest.mark.parametrize("after", [3, 6])
def test_a_run_that_was_cut_off_goes_on_as_if_it_never_stopped(joint, scenes, tmp_path, monkeypatch, one_thread, after):
    class PowerCutError(Exception):
        pass

    left, collate = [after], MultiTask.collate

    def failing(self, samples):
        left[0] -= 1
        if left[0] < 0:
            raise PowerCutError
        return collate(self, samples)

    monkeypatch.setattr(MultiTask, "collate", failing)
    with pytest.raises(PowerCutError):
        train(scenes, tmp_path / "run")
    monkeypatch.undo()
    # What a kill in the middle of replacing a bundle leaves behind.
    (tmp_path / "run" / "best").mkdir(exist_ok=True)
    (tmp_path / "run" / "best" / ".depth.new").mkdir()
    if (tmp_path / "run" / "best" / "depth").exists():
        shutil.move(tmp_path / "run" / "best" / "depth", tmp_path / "run" / "best" / ".depth.old")
    vitsplit.train(data=dict.fromkeys(TASKS, scenes), out=tmp_path / "run", resume=True, workers=after // 6)
    for task in TASKS:
        for which in ("last", "best"):
            assert_equal(weights(tmp_path / "run", task, which), weights(joint, task, which))
    assert not list((tmp_path / "run").rglob(".*"))


def test_other_settings_of_one_head_are_refused_on_resume(joint, scenes):
    with pytest.raises(RunError, match=r"depth\.optim\.lr: 0\.0005 in the run, 0\.1 now"):
        vitsplit.train(data=dict.fromkeys(TASKS, scenes), out=joint, resume=True, depth={"lr": 0.1})


def test_what_cannot_be_trained_is_refused(joint, scenes, tmp_path):
    with pytest.raises(ConfigError, match="'vqa' is no task that others are trained with"):
        vitsplit.train(data={"vqa": scenes}, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="--scale-range"):
        vitsplit.train(data={"depth": scenes}, out=tmp_path / "run", scale_range=(2.0, 1.0), random_weights=True)
    with pytest.raises(ConfigError, match="own recipe"):
        vitsplit.train(data={"depth": scenes}, recipe="ade20k-small", out=tmp_path / "run")


def test_images_that_one_task_lacks_stop_the_run_at_once(scenes, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(scenes, fewer)
    (fewer / "images" / "train" / "scene_00003.jpg").unlink()
    (fewer / "depth" / "train" / "scene_00003.png").unlink()
    with pytest.raises(DataError, match=r"depth has none for 1 of 6 images \(scene_00003\)"):
        vitsplit.train(data={"segmentation": scenes, "depth": fewer}, out=tmp_path / "run", **SHARED)
