"""Reports of evaluations of segmentation: metrics as JSON, and a page of images.

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from vitsplit.data.classes import IGNORE
from vitsplit.report import Page, screen_table, spread_evenly
from vitsplit.tasks.base import Evaluation, Predict
from vitsplit.tasks.segmentation.data import SegmentationSet

RIGHT, WRONG, IGNORED = (222, 226, 230), (206, 44, 49), (120, 124, 130)


def write_report(
    images: SegmentationSet, predict: Predict, evaluation: Evaluation, folder: Path, *, title: str, count: int = 12
) -> Path:
    """Writes ``metrics.json`` and ``index.html`` (table, ``count`` images spread over the set); returns the page."""
    page = Page(title, subtitle=f"{len(images.classes.names)} classes, {len(images)} validation images")
    add_figures(page, evaluation)
    page.heading("Pictures")
    add_gallery(page, images, predict, count)
    page.heading("Classes")
    add_class_table(page, evaluation)
    return page.write(folder, {"metrics": evaluation.metrics})


def add_figures(page: Page, evaluation: Evaluation) -> None:
    """mIoU, pixel and mean accuracy as large figures."""
    metrics = evaluation.metrics
    names = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_accuracy": "mean class accuracy"}
    page.figures([(f"{100 * metrics[key]:.1f} %", name) for key, name in names.items()])
    if calibration := describe_calibration(metrics):
        page.text(calibration, soft=True)


def add_class_table(page: Page, evaluation: Evaluation) -> None:
    """IoU, accuracy and share of each class, best first."""
    rows = sorted(evaluation.metrics["classes"].items(), key=lambda item: -(item[1]["iou"] or -1.0))
    page.table(["class", "IoU, %", "accuracy, %", "share of pixels, %"], _class_rows(rows))


def add_gallery(page: Page, images: SegmentationSet, predict: Predict, count: int) -> None:
    """Input, ground truth, prediction and error of images spread evenly over the validation set."""
    classes = images.classes
    page.legend(list(zip(classes.names, classes.colors, strict=True)))
    page.text("Error images: correct pixels are light gray, wrong pixels red, unlabeled pixels dark gray.", soft=True)
    for index in spread_evenly(count, len(images)):
        sample = images.load(index)
        prediction = predict(sample.image_CHW[None])[0]
        truth_HW = sample.mask_HW.numpy()
        valid_HW = truth_HW != IGNORE
        correct = (prediction.mask == truth_HW)[valid_HW].mean() if valid_HW.any() else float("nan")
        page.pictures(
            [
                (Image.fromarray(prediction.image), Path(sample.name).name),
                (paint(truth_HW, classes.colors), "ground truth"),
                (paint(prediction.mask, classes.colors), "prediction"),
                (_error(prediction.mask, truth_HW), f"error ({100 * correct:.1f} % correct)"),
            ]
        )


def paint(mask_HW: NDArray[np.uint8], colors: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """A mask in the class colors; ignored pixels are black."""
    picture = Image.fromarray(mask_HW)
    palette = [value for color in colors for value in color]
    picture.putpalette(palette + [0] * (768 - len(palette)))
    return picture


def _error(mask_HW: NDArray[np.uint8], truth_HW: NDArray[np.uint8]) -> Image.Image:
    kind_HW = np.where(truth_HW == IGNORE, 2, (mask_HW != truth_HW).astype(np.uint8)).astype(np.uint8)
    return paint(kind_HW, (RIGHT, WRONG, IGNORED))


def metrics_table(evaluation: Evaluation) -> Table:
    """The table of metrics for the terminal."""
    metrics = evaluation.metrics
    title = f"mIoU {percent(metrics['miou'])} %   pixel accuracy {percent(metrics['pixel_accuracy'])} %"
    rows = _class_rows(metrics["classes"].items())
    head = ["class", "IoU, %", "accuracy, %", "share, %"]
    return screen_table(head, rows, title=title, caption=describe_calibration(metrics) or None)


def describe_calibration(metrics: Mapping[str, Any]) -> str:
    """The expected calibration error in words; empty if it was not measured, as by earlier versions."""
    found = metrics.get("calibration", {})
    if found.get("ece") is None:
        return ""
    return (
        f"Expected calibration error of the confidences: {percent(found['ece'])} % with the temperature "
        f"{found['temperature']:.3g}, {percent(found['ece_before'])} % with 1 (images at odd positions)."
    )


def _class_rows(classes: Iterable[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    return [[name, *(percent(row[key]) for key in ("iou", "accuracy", "share"))] for name, row in classes]


def percent(value: float | None) -> str:
    """A fraction as a percentage without the sign, or a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"
