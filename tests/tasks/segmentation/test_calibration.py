"""Confidences: oracles are sums over bins, scipy's minimum of the likelihood, and labels of known probabilities."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.optimize import minimize_scalar

import vitsplit
from small_run import SMALL_RUN
from vitsplit.cli.main import main
from vitsplit.engine.assemble import assemble
from vitsplit.engine.override import override
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.trainer import Trainer
from vitsplit.errors import BundleError
from vitsplit.recipes.starting_point import starting_config
from vitsplit.tasks.segmentation.calibration import (
    SCORES_IN_TOTAL,
    PixelScores,
    choose_pixels,
    expected_calibration_error,
    fit_temperature,
    measure_calibration,
    top_probability,
)

GENERATOR = torch.Generator().manual_seed(0)


def drawn(count: int, scale: float, classes: int = 5) -> PixelScores:
    """Pixels whose labels are drawn from the softmax of logits, with these logits times ``scale``."""
    logits_PK = 2 * torch.randn(count, classes, generator=GENERATOR)
    label_P = torch.multinomial(logits_PK.softmax(1), 1, generator=GENERATOR)[:, 0]
    return PixelScores(scale * logits_PK, label_P)


def test_error_is_the_sum_over_bins() -> None:
    confidence_P = torch.cat([torch.rand(5000, generator=GENERATOR), torch.tensor([1.0, 1 / 15, 2 / 15, 1e-9])])
    correct_P = torch.rand(5004, generator=GENERATOR) < confidence_P**2
    expected = 0.0
    for number in range(15):
        inside = [
            place
            for place, value in enumerate(confidence_P.double().tolist())
            if number / 15 < value * (1 + 1e-12) and value <= (number + 1) / 15
        ]
        if inside:
            accuracy = np.mean([bool(correct_P[place]) for place in inside])
            expected += len(inside) / 5004 * abs(accuracy - np.mean([float(confidence_P[place]) for place in inside]))
    assert expected > 0.1
    assert expected_calibration_error(confidence_P, correct_P) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_a_planted_scale_is_recovered(scale: float) -> None:
    pixels = drawn(20_000, scale)
    found = fit_temperature(pixels.scores_PK, pixels.label_P)
    assert found == pytest.approx(scale, rel=0.03)

    logits, labels = pixels.scores_PK.double().numpy(), pixels.label_P.numpy()

    def likelihood(temperature: float) -> float:
        odds = np.exp(logits / temperature)
        return float(-np.log(odds[range(len(labels)), labels] / odds.sum(1)).mean())

    assert found == pytest.approx(minimize_scalar(likelihood, bounds=(0.1, 10), method="bounded").x, rel=1e-3)


@pytest.mark.parametrize("scale", [0.02, 0.7, 0.99, 1.0, 1.01, 30.0])
@pytest.mark.parametrize("count", [1, 30, 3000])
def test_the_loss_is_at_most_that_of_temperature_1(count: int, scale: float) -> None:
    pixels = drawn(count, scale)
    found = fit_temperature(pixels.scores_PK, pixels.label_P)
    before, after = (
        torch.nn.functional.cross_entropy(pixels.scores_PK.double() / each, pixels.label_P) for each in (1.0, found)
    )
    assert after <= before + 1e-7


def test_images_at_even_positions_fit_and_the_others_judge() -> None:
    images = {place: drawn(2000, 3.0) for place in range(6)}
    found = measure_calibration(images, None)
    assert found["temperature"] == pytest.approx(3.0, rel=0.05)
    assert found["ece_before"] > 0.1 and found["ece"] < 0.03
    assert measure_calibration(dict(reversed(images.items())), None) == found
    # Others at odd positions change the errors only, others at even positions the temperature too.
    assert measure_calibration(images | {1: drawn(2000, 0.5)}, None)["temperature"] == found["temperature"]
    even = measure_calibration(images | {0: drawn(2000, 9.0)}, None)
    assert even["temperature"] > 3.3 and even["ece_before"] == found["ece_before"]
    given = measure_calibration(images, 1.0)
    assert given == {"temperature": 1.0, "ece_before": found["ece_before"], "ece": found["ece_before"]}


def test_without_labels_there_is_no_figure() -> None:
    empty, full = PixelScores(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)), drawn(100, 1.0)
    none = {"temperature": None, "ece_before": None, "ece": None}
    assert measure_calibration({}, None) == measure_calibration({0: empty, 1: full}, None) == none
    assert measure_calibration({0: full, 1: empty}, None)["ece"] is None


def test_largest_probability() -> None:
    scores = torch.randn(2, 7, 4, 5, generator=GENERATOR)
    for temperature in (0.3, 1.0, 4.0):
        expected = (scores / temperature).softmax(1).amax(1)
        torch.testing.assert_close(top_probability(scores, scores.amax(1, keepdim=True), temperature), expected)


def test_pixels_are_labeled_and_evenly_spaced() -> None:
    mask_HW = torch.full((40, 50), 255, dtype=torch.uint8)
    mask_HW[10:30] = 3
    assert choose_pixels(mask_HW, 10, 5).tolist() == list(range(500, 1500))
    most = 100
    few_P = choose_pixels(mask_HW, SCORES_IN_TOTAL // (5 * most), 5)
    assert few_P.tolist() == list(range(500, 1500, 10))
    assert len(choose_pixels(torch.full((4, 5), 255, dtype=torch.uint8), 10, 5)) == 0
    assert len(choose_pixels(mask_HW, 10**9, 5)) == 1


def test_a_run_records_the_temperature_of_its_weights(run: Path, scenes: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = next(row["eval"]["calibration"] for row in rows if "eval" in row)
    card = json.loads((run / "best" / "head.json").read_text())
    assert card["description"]["temperature"] == measured["temperature"] != 1.0
    assert card["metrics"]["calibration"] == measured
    evaluation, _ = vitsplit.evaluate(run, data=scenes)
    assert evaluation.metrics["calibration"] == pytest.approx(measured)

    # All pixels of the image at the odd position, in place of the metric's.
    image, mask = sorted((scenes / "images/val").iterdir())[1], sorted((scenes / "masks/val").iterdir())[1]
    prediction = vitsplit.load(run).predict(image)["segmentation"]
    truth_HW = vitsplit.data.images.read_mask(mask).numpy()
    error = expected_calibration_error(
        torch.from_numpy(prediction.confidence.flatten()), torch.from_numpy((prediction.mask == truth_HW).flatten())
    )
    assert measured["ece"] == pytest.approx(error, abs=1e-6)


def test_a_resumed_run_records_the_same(run: Path, scenes: Path, tmp_path: Path) -> None:
    config = override(starting_config("segmentation"), SMALL_RUN)
    for stop in (1, None):
        backbone, tasks, model, save = assemble(config, {"segmentation": scenes})
        trainer = Trainer(config, tasks=tasks, backbone=backbone, model=model)
        with RunFolder.open(tmp_path / "run", resume=stop is None) as folder:
            trainer.fit(folder, save, resume=stop is None, pause_after=stop, console=Console(file=io.StringIO()))
    for bundle in ("best", "last"):
        cards = [json.loads((each / bundle / "head.json").read_text()) for each in (run, tmp_path / "run")]
        assert cards[0]["description"] == cards[1]["description"]
        assert "temperature" in cards[0]["description"]


def with_description(run: Path, to: Path, **fields: Any) -> Path:
    """A copy of the run's best bundle with another temperature; None: without."""
    bundle = Path(shutil.copytree(run / "best", to))
    card = json.loads((bundle / "head.json").read_text())
    card["description"] = {name: value for name, value in (card["description"] | fields).items() if value is not None}
    (bundle / "head.json").write_text(json.dumps(card))
    return bundle


def test_a_bundle_without_a_temperature_has_1(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((scenes / "images/val").iterdir())
    old = with_description(run, tmp_path / "old", temperature=None)
    one = with_description(run, tmp_path / "one", temperature=1.0)
    warm = with_description(run, tmp_path / "warm", temperature=2.0)
    first, second, third = (vitsplit.load(each).predict(image)["segmentation"] for each in (old, one, warm))
    assert np.array_equal(first.confidence, second.confidence)
    assert np.array_equal(first.mask, third.mask) and (third.confidence < first.confidence).all()
    measured = vitsplit.evaluate(old, data=scenes)[0].metrics["calibration"]
    assert measured["temperature"] == 1.0 and measured["ece"] == measured["ece_before"]
    for bundle, text in ((old, "not calibrated"), (warm, "temperature 2")):
        assert main(["info", str(bundle)]) == 0
        assert text in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, -1, 1e9, "1", True, [1.0]], ids=repr)
def test_invalid_temperatures_are_rejected(run: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(BundleError, match=r"head\.json.*temperature"):
        vitsplit.load(with_description(run, tmp_path / "bad", temperature=value))
