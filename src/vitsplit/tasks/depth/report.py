"""Reports of evaluations of depth: metrics as JSON, and a page of images.

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from vitsplit.report import Page, screen_table, spread_evenly
from vitsplit.tasks.base import Evaluation, Predict
from vitsplit.tasks.depth.colormap import apply_colormap, display_range
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import DepthSet, keep_range
from vitsplit.tasks.depth.metrics import METRICS

LABELS = {
    "rmse": "RMSE, m",
    "abs_rel": "AbsRel",
    "log10": "log10",
    "delta1": "delta 1 (< 1.25)",
    "delta2": "delta 2 (< 1.25²)",
    "delta3": "delta 3 (< 1.25³)",
    "sq_rel": "SqRel, m",
    "rmse_log": "RMSElog",
    "silog": "SILog",
}
ERROR_COLORS = "Reds"
ERROR_RANGE = (0.0, 0.5)
"""Relative errors at the ends of the color map."""


def write_report(
    images: DepthSet,
    predict: Predict,
    evaluation: Evaluation,
    folder: Path,
    *,
    config: DepthConfig,
    title: str,
    count: int = 12,
) -> Path:
    """Writes ``metrics.json`` and ``index.html`` (figures, ``count`` images spread over the set); returns the page."""
    metrics = evaluation.metrics
    page = Page(title, subtitle=f"{metrics['images']} validation images; {describe_protocol(metrics)}")
    delta1 = (f"{100 * metrics['delta1']:.1f} %", "delta 1: pixels within a factor of 1.25")
    page.figures([(f"{metrics['rmse']:.3f} m", "RMSE"), (f"{metrics['abs_rel']:.3f}", "AbsRel"), delta1])
    page.heading("Pictures")
    add_gallery(page, images, predict, config, count)
    page.heading("Metrics")
    page.table(["metric", "mean over images"], _rows(metrics))
    return page.write(folder, {"metrics": metrics})


def add_gallery(page: Page, images: DepthSet, predict: Predict, config: DepthConfig, count: int) -> None:
    """Input, ground truth, prediction and error of images spread evenly over the validation set."""
    page.text(
        "Ground truth and prediction share a color scale, bright (near) to dark (far); invalid pixels are gray. "
        f"Relative errors are white at 0 and dark red at {100 * ERROR_RANGE[1]:.0f} % and above.",
        soft=True,
    )
    for index in spread_evenly(count, len(images)):
        sample = images.load(index)
        prediction = predict(sample.image_CHW[None])[0]
        truth_HW = keep_range(sample.depth_HW, config.min_depth, config.max_depth).numpy()
        range_m = display_range(truth_HW if truth_HW.any() else prediction.depth)
        error_HW = relative_error(prediction.depth, truth_HW)
        valid_HW = truth_HW > 0
        mean = f"mean {100 * error_HW[valid_HW].mean():.1f} %" if valid_HW.any() else "no valid depth"
        page.pictures(
            [
                (Image.fromarray(prediction.image), Path(sample.name).name),
                (apply_colormap(truth_HW, valid_HW, range_m), "ground truth"),
                (
                    apply_colormap(prediction.depth, prediction.depth > 0, range_m),
                    f"prediction ({range_m[0]:g} to {range_m[1]:g} m)",
                ),
                (apply_colormap(error_HW, valid_HW, ERROR_RANGE, ERROR_COLORS), f"relative error ({mean})"),
            ]
        )


def relative_error(depth_HW: NDArray[np.float32], truth_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """``|d - t| / t``, (H, W) float32; 0 where the ground truth is invalid."""
    valid_HW = truth_HW > 0
    return np.where(valid_HW, np.abs(depth_HW - truth_HW) / np.where(valid_HW, truth_HW, 1), 0).astype(np.float32)


def describe_protocol(metrics: dict[str, Any]) -> str:
    """The evaluation protocol in words."""
    protocol = metrics["protocol"]
    high = "" if protocol["max_depth"] is None else f" to {protocol['max_depth']:g} m"
    crop = "all pixels" if protocol["eval_crop"] == "none" else f"crop {protocol['eval_crop']}"
    parts = [f"depths from {protocol['min_depth']:g} m{high}", crop]
    parts.append("averaged with the mirrored image" if protocol["test_flip"] else "without the mirrored image")
    if protocol["median_scaling"]:
        parts.append("predictions scaled to the median of the ground truth")
    if metrics["images_without_depth"]:
        parts.append(f"{metrics['images_without_depth']} images without valid depth skipped")
    return ", ".join(parts)


def metrics_table(evaluation: Evaluation) -> Table:
    """The table of metrics for the terminal."""
    metrics = evaluation.metrics
    title = f"RMSE {metrics['rmse']:.3f} m   AbsRel {metrics['abs_rel']:.3f}   delta1 {metrics['delta1']:.3f}"
    caption = f"{metrics['images']} images; {describe_protocol(metrics)}"
    head = ["metric", "mean over images"]
    return screen_table(head, _rows(metrics), title=title, min_width=len(title) + 4, caption=caption)


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    return [[LABELS[name], f"{metrics[name]:.4f}"] for name in METRICS]
