"""Exported bundles are used like the bundles; the oracle are the predictions of the bundles themselves."""

import json

import numpy as np
import pytest
from bundles import SMALL, write_depth_bundle, write_segmentation_bundle
from PIL import Image

import vitsplit
from vitsplit.cli.main import main
from vitsplit.runtime import Runtime

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, write in {"rooms": write_segmentation_bundle, "depth": write_depth_bundle}.items():
        write(root / name / "best", backbone=SMALL, num_tuned_layers=1, num_prior_layers=1)
    return [str(root / "rooms"), str(root / "depth")]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate([(90, 120), (70, 61)]):
        small = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def commands(runs, photos, tmp_path_factory):
    """Folder with the predictions of three commands: of the bundles, and twice with ``--runtime onnx``."""
    root = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITSPLIT_CACHE", str(root / "cache"))
        for name in ("torch", "onnx", "onnx again"):
            arguments = ["predict", *runs, str(photos), "--out", str(root / name), "--runtime", name.split()[0]]
            assert main(arguments) == 0
            assert (root / "cache" / "exports").exists() == (name != "torch")
    return root


@pytest.fixture(scope="module")
def exported(commands):
    (folder,) = (commands / "cache" / "exports").iterdir()  # the second command found that of the first
    return folder


def assert_same_files(first, second):
    names = {path.name for path in first.iterdir()}
    assert {path.name for path in second.iterdir()} == names and len(names) >= 10
    for name in names:
        if name.endswith("mask.png"):
            masks = [np.asarray(Image.open(folder / name)) for folder in (first, second)]
            assert (masks[0] == masks[1]).mean() > 0.999
        elif name.endswith(".npy"):
            np.testing.assert_allclose(np.load(second / name), np.load(first / name), atol=1e-4)


def test_bundles_in_another_runtime(commands):
    assert_same_files(commands / "torch", commands / "onnx")
    assert_same_files(commands / "torch", commands / "onnx again")


def test_the_command_writes_the_same_files(commands, exported, photos, tmp_path):
    assert main(["predict", str(exported), str(photos), "--out", str(tmp_path)]) == 0
    assert_same_files(commands / "torch", tmp_path)


def test_the_runtime_predicts_the_same(runs, exported, photos):
    model, runtime = vitsplit.load(*runs), Runtime(exported)
    for path in photos.iterdir():
        expected, mine = model.predict(path), runtime.predict(path)
        assert mine.keys() == expected.keys()
        assert (mine["segmentation"].mask == expected["segmentation"].mask).mean() > 0.98, "resized by Pillow"
        np.testing.assert_allclose(mine["depth"].depth, expected["depth"].depth, atol=0.1)
        assert mine["segmentation"].classes == expected["segmentation"].classes


def test_evaluation_is_that_of_the_bundle(runs, exported, photos, tmp_path, capsys):
    data = tmp_path / "data"
    (data / "images" / "val").mkdir(parents=True)
    (data / "masks" / "val").mkdir(parents=True)
    for path in photos.iterdir():
        (data / "images" / "val" / path.name).write_bytes(path.read_bytes())
        height, width = np.asarray(Image.open(path)).shape[:2]
        labels = Image.fromarray(RNG.integers(0, 5, (4, 5), dtype=np.uint8)).resize((width, height), 0)
        labels.save(data / "masks" / "val" / path.name)
    (data / "classes.json").write_text(json.dumps([f"class {k}" for k in range(5)]))
    options = ["--data", str(data), "--json", "--test-flip", "--workers", "0"]
    found = []
    for run in ([runs[0]], [str(exported), "--head", "segmentation"]):
        assert main(["evaluate", *run, *options, "--out", str(tmp_path / f"evaluation-{len(found)}")]) == 0
        found.append(json.loads(capsys.readouterr().out)["miou"])
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_the_card_has_the_settings_of_the_bundles(runs, exported):
    model, bundles = vitsplit.load(exported), vitsplit.load(*runs)
    for name, head in bundles.items():
        assert model[name].card.config == head.card.config
        assert model[name].card.backbone == head.card.backbone


def test_options_that_a_graph_does_not_have(runs, exported, photos, tmp_path):
    for run, options in (
        (runs[0], ["--runtime", "onnx", "--precision", "bf16"]),
        (runs[0], ["--runtime", "onnx", "--device", "cuda"]),
        (str(exported), ["--runtime", "torch"]),
    ):
        assert main(["predict", run, str(photos), "--out", str(tmp_path / "refused"), *options]) == 2
    assert not (tmp_path / "refused").exists()
