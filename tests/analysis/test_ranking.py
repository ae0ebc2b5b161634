"""``vitsplit rank``: the order against a search written out, uncertainties and features against public functions."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitsplit
from small_run import SMALL_RUN
from vitsplit.analysis.ranking import Measured, greedy_order, measure
from vitsplit.cli.main import main
from vitsplit.data.classes import ClassList
from vitsplit.data.images import read_image
from vitsplit.tasks.base import Forward
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.tasks.detection.task import DetectionTask
from vitsplit.types import TapRequest


def example(count: int = 12, width: int = 5) -> Measured:
    generator = torch.Generator().manual_seed(count)
    feature_ND = torch.randn(count, width, generator=generator)
    feature_ND = feature_ND / feature_ND.norm(dim=1, keepdim=True)
    return Measured(
        tuple(Path(f"{index}.jpg") for index in range(count)), torch.rand(count, generator=generator), feature_ND
    )


@pytest.mark.parametrize("labeled", [0, 3])
def test_the_order_is_that_of_an_exhaustive_search(labeled: int) -> None:
    images = example()
    known_MD = example(7).feature_ND[:labeled]
    x, u = images.feature_ND.double().numpy(), images.uncertainty_N.double().numpy()
    before, expected = list(known_MD.double().numpy()), []
    for _ in range(9):
        scores = {
            index: u[index] * min([1 - x[index] @ other for other in before], default=1.0)
            for index in range(len(x))
            if index not in [each for each, _ in expected]
        }
        best = max(scores, key=lambda index: scores[index])
        expected.append((best, scores[best]))
        before.append(x[best])
    order = greedy_order(images, 9, known_MD if labeled else None)
    assert [each.index for each in order] == [index for index, _ in expected]
    assert [each.score for each in order] == pytest.approx([score for _, score in expected], abs=1e-6)


def test_copies_come_last() -> None:
    images = example(6)
    twice = Measured(
        images.paths * 2, torch.cat([images.uncertainty_N] * 2), torch.cat([images.feature_ND, images.feature_ND])
    )
    order = [each.index for each in greedy_order(twice, 100)]
    assert sorted(order) == list(range(12))
    assert len({index % 6 for index in order[:6]}) == 6


def test_uncertainty_and_features_are_of_the_prediction_and_the_backbone(run: Path, scenes: Path) -> None:
    model = vitsplit.load(run, precision="fp32")
    head, files = model["segmentation"], sorted((scenes / "images" / "train").iterdir())
    found = measure(head, files)
    assert found.paths == tuple(files) and not found.failed
    last = model.backbone.num_layers - 1
    for index, file in enumerate(files):
        confidence_HW = model.predict(file)["segmentation"].confidence
        assert float(found.uncertainty_N[index]) == pytest.approx(1 - confidence_HW.mean(), abs=1e-6)
        # Images of 48 x 64 pixels are not padded.
        map_Dhw = model.backbone(read_image(file)[None], TapRequest(maps=frozenset({last}))).maps[last][0]
        mean_D = map_Dhw.flatten(1).mean(1)
        torch.testing.assert_close(found.feature_ND[index], mean_D / mean_D.norm())


def test_views_and_windows_are_averaged(run: Path, scenes: Path) -> None:
    head = vitsplit.load(run, precision="fp32")["segmentation"]
    file = next((scenes / "images" / "train").iterdir())
    (plain_D,) = measure(head, [file]).feature_ND
    head.task.config = dataclasses.replace(head.task.config, test_flip=True)
    (both_D,) = measure(head, [file]).feature_ND
    assert both_D.norm() == pytest.approx(1) and not torch.equal(plain_D, both_D)


def test_the_command_writes_a_table_and_a_page(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(scenes / "images" / "train", tmp_path / "images"))
    (images / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    words = ["rank", str(images), "--bundle", str(run), "--labeled", str(scenes / "images" / "val"), "--count", "4"]
    assert main([*words, "--pictures", "2", "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "4 of 6 images" in printed.out and "broken.jpg" in printed.err
    with (out / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {key: str(value) for key, value in row.items()} for row in json.loads((out / "ranking.json").read_text())
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert len({row["image"] for row in rows}) == 4 and all(Path(row["image"]).is_file() for row in rows)
    scores = [float(row["score"]) for row in rows]
    assert np.allclose(scores, [float(row["uncertainty"]) * float(row["distance"]) for row in rows], atol=1e-5)
    assert (out / "index.html").read_text().count("<img") == 2 * 3


def objects(*scores: float) -> DetectionPrediction:
    """Objects without masks on a small image."""
    boxes_N4 = np.tile(np.float32([2, 3, 20, 30]), (len(scores), 1))
    labels_N, image_HWC = np.zeros(len(scores), np.int64), np.zeros((48, 64, 3), np.uint8)
    classes = ClassList(("cup",), ((200, 0, 0),))
    return DetectionPrediction(boxes_N4, labels_N, np.float32(scores), None, classes, (1,), image_HWC)


def test_uncertainty_of_objects() -> None:
    """Brust et al. 2019, with the probabilities of the two likeliest classes as p and 1 - p."""
    expected = sum((1 - (max(p, 1 - p) - min(p, 1 - p))) ** 2 for p in (0.9, 0.6, 0.3))
    assert objects(0.9, 0.6, 0.3).uncertainty() == pytest.approx(expected)
    assert objects().uncertainty() == 0
    assert objects(0.5).uncertainty() == 1
    # Drawn are those around 0.5 only.
    assert np.asarray(objects(0.99, 0.1).uncertainty_picture()).max() == 0
    assert np.asarray(objects(0.99, 0.5).uncertainty_picture()).max() > 0


def test_images_with_planted_uncertain_objects_come_first(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images that are alike, those with many doubtful objects come first, and those without objects last."""
    found = {"many": (0.6, 0.5, 0.4), "one": (0.99, 0.55), "sure": (0.99, 0.98, 0.02), "none": ()}
    noise = np.random.default_rng(0)
    for name in found:
        Image.fromarray(noise.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    settings = SMALL_RUN | {"image_scale": (64, 48), "train_sides": (48,)}
    settings.pop("crop_size")
    vitsplit.train(data=scenes, task="detection", out=tmp_path / "run", **settings)
    by_mean = {float(read_image(tmp_path / f"{name}.png").float().mean()): scores for name, scores in found.items()}

    def planted(task: DetectionTask, forward: Forward, image_BCHW: torch.Tensor) -> list[DetectionPrediction]:
        forward(image_BCHW)
        return [objects(*by_mean[float(image_BCHW.float().mean())])]

    monkeypatch.setattr(DetectionTask, "predict", planted)
    out = tmp_path / "out"
    assert main(["rank", str(tmp_path), "--bundle", str(tmp_path / "run"), "--out", str(out)]) == 0
    ranked = json.loads((out / "ranking.json").read_text())
    assert [Path(row["image"]).stem for row in ranked] == ["many", "one", "sure", "none"]
    assert ranked[0]["uncertainty"] == pytest.approx(objects(0.6, 0.5, 0.4).uncertainty(), abs=1e-6)
    assert (out / "index.html").read_text().count("<img") == 4 * 3


def test_what_cannot_be_ranked(run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vitsplit.train(data=scenes, task="depth", out=tmp_path / "depth", **SMALL_RUN)
    images = str(scenes / "images" / "val")
    assert main(["rank", images, "--bundle", str(tmp_path / "depth"), "--out", str(tmp_path / "out")]) == 2
    assert "depth" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        assert main(["rank", str(tmp_path / folder), "--bundle", str(run), "--out", str(tmp_path / "out")]) == 2
        assert folder in capsys.readouterr().err
