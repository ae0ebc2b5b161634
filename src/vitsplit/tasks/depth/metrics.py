"""Metrics of depth maps, following the standard protocols: per image, then averaged over images.

Shapes: H W pixels, P valid pixels, M metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitsplit.data.folders import preview
from vitsplit.errors import DataError
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.depth.config import DepthConfig, EvalCrop
from vitsplit.tasks.depth.data import DepthSample, DepthSet, keep_range

logger = logging.getLogger(__name__)

METRICS = ("rmse", "abs_rel", "log10", "delta1", "delta2", "delta3", "sq_rel", "rmse_log", "silog")
"""Names in the order of ``depth_metrics``, those of Table 11 first."""

NYU_SIZE = (480, 640)
NYU_EIGEN = (45, 41, 471, 601)
"""Top, left, bottom, right at ``NYU_SIZE``; scaled proportionally for maps of other sizes."""
KB_SIZE = (352, 1216)
"""Height and width of KITTI's depth benchmark crop, at the bottom center of the image."""
FRACTIONS: dict[EvalCrop, tuple[float, float, float, float]] = {
    "garg": (0.40810811, 0.03594771, 0.99189189, 0.96405229),
    "kitti-eigen": (0.3324324, 0.0359477, 0.91351351, 0.96405229),
}
"""Top, left, bottom, right as fractions of height and width, rounded down to whole pixels."""


PROTOCOL = ("eval_crop", "min_depth", "max_depth", "test_flip", "median_scaling")
"""Settings that define the evaluation protocol."""


class DepthMetric:
    """The metrics of Table 11 and others, averaged over images; see ``Metric``.

    Images without a valid pixel (inside ``eval_crop``) are skipped; they are logged, and their number is reported.

    Args:
        config: Settings.
        images: The data set, for error messages.
    """

    def __init__(self, config: DepthConfig, images: DepthSet) -> None:
        self.config = config
        self.images = images
        # Sums of the metrics over images, number of images, and number of images without a valid pixel.
        self.sums = torch.zeros(len(METRICS) + 2, dtype=torch.float64)
        self.skipped: list[str] = []

    def update(self, prediction: Tensor, sample: DepthSample) -> None:
        """Adds an image: the predicted ``depth_HW`` in meters, on any device, and the sample."""
        metrics_M = measure(prediction, sample.depth_HW.to(prediction.device), self.config)
        if metrics_M is None:
            self.skipped.append(sample.name)
            self.sums[-1] += 1
        else:
            self.sums[:-2] += metrics_M.cpu()
            self.sums[-2] += 1

    def state(self) -> tuple[Tensor, list[str]]:
        """The sums, and the skipped images."""
        return self.sums, self.skipped

    def merge(self, states: Sequence[tuple[Tensor, list[str]]]) -> None:
        """Sums the states."""
        self.sums = torch.stack([sums for sums, _ in states]).sum(0)
        self.skipped = [name for _, skipped in states for name in skipped]

    def compute(self) -> Evaluation:
        """The means; the score is the negative RMSE."""
        *sums, measured, without = self.sums.tolist()
        if self.skipped:
            logger.warning("%d images have no valid depth and are skipped: %s", int(without), preview(self.skipped))
        if not measured:
            raise DataError(
                f"{self.images.root}: no image of the {self.images.split} split has a valid depth. Check its maps."
            )
        means = dict(zip(METRICS, (value / measured for value in sums), strict=True))
        protocol = {name: getattr(self.config, name) for name in PROTOCOL}
        counts = {"images": int(measured), "images_without_depth": int(without)}
        return Evaluation({**means, **counts, "protocol": protocol}, -means["rmse"], "neg_rmse")


def depth_metrics(depth_P: Tensor, truth_P: Tensor) -> Tensor:
    """The metrics of one image, (M,) float64 in the order of ``METRICS``.

    Args:
        depth_P: Predicted depth in meters, above 0.
        truth_P: Ground-truth depth in meters, above 0; at least one pixel.

    Returns:
        With prediction d and ground truth t: rmse ``sqrt(mean((d-t)^2))`` and sq_rel ``mean((d-t)^2/t)`` in meters;
        abs_rel ``mean(|d-t|/t)``; log10 ``mean(|log10 d - log10 t|)``; delta k, the fraction of pixels with
        ``max(d/t, t/d) < 1.25^k``; rmse_log ``sqrt(mean(g^2))`` and silog ``100 sqrt(mean(g^2) - mean(g)^2)`` with
        ``g = ln d - ln t``.
    """
    depth_P, truth_P = depth_P.double(), truth_P.double()
    gap_P, log_gap_P = depth_P - truth_P, depth_P.log() - truth_P.log()
    ratio_P = torch.maximum(depth_P / truth_P, truth_P / depth_P)
    values = {
        "rmse": gap_P.square().mean().sqrt(),
        "abs_rel": (gap_P.abs() / truth_P).mean(),
        "log10": (depth_P.log10() - truth_P.log10()).abs().mean(),
        **{f"delta{k}": (ratio_P < 1.25**k).double().mean() for k in (1, 2, 3)},
        "sq_rel": (gap_P.square() / truth_P).mean(),
        "rmse_log": log_gap_P.square().mean().sqrt(),
        "silog": 100 * log_gap_P.var(correction=0).sqrt(),
    }
    return torch.stack([values[name] for name in METRICS])


def measure(depth_HW: Tensor, truth_HW: Tensor, config: DepthConfig) -> Tensor | None:
    """The metrics of one image on its valid pixels inside ``eval_crop``; None if there are none.

    Following the standard protocols, predictions are clamped to ``min_depth`` and ``max_depth``, after optional median
    scaling.

    Args:
        depth_HW: Predicted depth in meters.
        truth_HW: Ground-truth depth in meters; 0 where invalid.
        config: ``min_depth``, ``max_depth``, ``eval_crop``, ``median_scaling``.

    Returns:
        (M,) float64 in the order of ``METRICS``.
    """
    top, left, bottom, right = crop_box(config.eval_crop, (truth_HW.shape[0], truth_HW.shape[1]))
    truth_HW = keep_range(truth_HW, config.min_depth, config.max_depth)[top:bottom, left:right]
    valid_HW = truth_HW > 0
    if not valid_HW.any():
        return None
    depth_P, truth_P = depth_HW[top:bottom, left:right][valid_HW], truth_HW[valid_HW]
    if config.median_scaling:
        depth_P = depth_P * float(np.median(truth_P.cpu()) / np.median(depth_P.cpu()))
    return depth_metrics(depth_P.clamp(config.min_depth, config.max_depth), truth_P)


def crop_box(crop: EvalCrop, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The evaluated region of a map: top, left, bottom, right.

    Args:
        crop: ``nyu-eigen``: rows 45 to 471 and columns 41 to 601 of 480x640, scaled to other sizes; ``kb``: 352x1216,
            the crop of KITTI's benchmark (or the full side if smaller); ``garg`` and ``kitti-eigen``: fractions.
        size: Height and width of the map.
    """
    height, width = size
    if crop == "none":
        return 0, 0, height, width
    if crop == "kb":
        top, left = max(0, height - KB_SIZE[0]), max(0, (width - KB_SIZE[1]) // 2)
        return top, left, height, min(left + KB_SIZE[1], width)
    if crop == "nyu-eigen":
        down, across = height / NYU_SIZE[0], width / NYU_SIZE[1]
        top, left, bottom, right = NYU_EIGEN
        return round(top * down), round(left * across), round(bottom * down), round(right * across)
    shares = FRACTIONS[crop]
    return int(shares[0] * height), int(shares[1] * width), int(shares[2] * height), int(shares[3] * width)
