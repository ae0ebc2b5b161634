"""Segmentation, depth and detection from one pass; the oracle is each bundle loaded alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_depth_bundle, write_detection_bundle, write_segmentation_bundle

import vitsplit
from vitsplit.cli.main import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Other K_t and other layers each; detection sees larger images."""
    root = tmp_path_factory.mktemp("bundles")
    return {
        "segmentation": write_segmentation_bundle(root / "rooms", num_tuned_layers=2, seed=1),
        "depth": write_depth_bundle(root / "far", num_tuned_layers=3, selection="last", num_prior_layers=3, seed=2),
        "detection": write_detection_bundle(
            root / "things", num_tuned_layers=1, first_prior_layer=0, seed=3, task={"image_scale": (96, 64)}
        ),
    }


def arrays(prediction: Any) -> dict[str, np.ndarray]:
    values = {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_equal_each_bundle_alone(runs: dict[str, Path], precision: Any) -> None:
    together = vitsplit.load(*runs.values(), precision=precision)
    assert list(together) == list(runs)
    alone = {name: vitsplit.load(run, precision=precision) for name, run in runs.items()}
    rng = np.random.default_rng(0)
    for size in ((70, 90), (70, 90), (33, 20)):
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        answers = together.predict(image)
        for name, answer in answers.items():
            expected = arrays(alone[name].predict(image)[name])
            assert len(expected) >= 2 and all(value.size for value in expected.values())
            for field, value in arrays(answer).items():
                assert value.dtype == expected[field].dtype and np.array_equal(value, expected[field]), (name, field)
    # 70 x 90 fits in 64 x 48 as 48 x 62 and in 96 x 64 as 64 x 82; 33 x 20 as 64 x 39 and as 96 x 58.
    assert set(together.passes) == {
        ((48, 62), ("segmentation", "depth")),
        ((64, 82), ("detection",)),
        ((64, 39), ("segmentation", "depth")),
        ((96, 58), ("detection",)),
    }


def test_a_joint_run_loads_all_of_its_bundles(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("segmentation", "depth"):
        shutil.copytree(runs[name], tmp_path / "joint" / "best" / name)
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    answers = vitsplit.load(tmp_path / "joint").predict(image)
    expected = vitsplit.load(runs["segmentation"], runs["depth"]).predict(image)
    assert list(answers) == ["segmentation", "depth"]
    assert np.array_equal(answers["depth"].depth, expected["depth"].depth)
    # Beside another bundle of a task that it holds, the run's name stands for the task's.
    names = list(vitsplit.load(tmp_path / "joint", runs["segmentation"]))
    assert names == ["joint", "depth", "rooms"]


def test_files_of_three_tasks(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    pixels = np.random.default_rng(2).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert main(["predict", *map(str, runs.values()), str(tmp_path / "a.png"), "--out", str(out)]) == 0
    # Only the two overlays would have the same name.
    assert {path.name for path in out.iterdir()} == {
        "predictions.jsonl", "a_mask.png", "a_depth.npy", "a_depth.png", "a_depth.jpg", "a_detections.json",
        "a_segmentation_overlay.jpg", "a_detection_overlay.jpg",
    }  # fmt: skip
    output = capsys.readouterr().out
    assert "1 pass at 48x62 for segmentation and depth; 1 pass at 64x82 for detection" in output


@pytest.mark.parametrize("size", [(1, 1), (10, 30_000)])
def test_images_of_extreme_shapes(runs: dict[str, Path], size: tuple[int, int]) -> None:
    answers = vitsplit.load(*runs.values()).predict(np.full((*size, 3), 90, dtype=np.uint8))
    assert answers["segmentation"].mask.shape == answers["depth"].depth.shape == size
    boxes = answers["detection"].boxes
    assert ((boxes >= 0) & (boxes <= np.array([size[1], size[0]] * 2))).all()
