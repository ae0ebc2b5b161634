"""Metrics of semantic segmentation, from one confusion matrix over the whole set.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.errors import DataError
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.segmentation.calibration import PixelScores, measure_calibration

if TYPE_CHECKING:
    from vitsplit.tasks.segmentation.data import SegmentationSample, SegmentationSet


@dataclass(frozen=True)
class ValPrediction:
    """What the metrics need of an image.

    Attributes:
        mask_HW: The predicted classes, uint8, on any device.
        pixels: Some labeled pixels, for the calibration.
    """

    mask_HW: Tensor
    pixels: PixelScores


class SegmentationMetric:
    """Counts pixels by ground truth and prediction, and measures the calibration of probabilities; see ``Metric``.

    Args:
        images: The data set, for its classes and the positions of its images.
        temperature: The temperature of the probabilities; None: it is fitted.
    """

    def __init__(self, images: SegmentationSet, temperature: float | None = None) -> None:
        self.images = images
        self.temperature = temperature
        self.names = images.classes.names
        self.counts_KK = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)
        self.pixels: dict[int, PixelScores] = {}
        self._places = {str(image_path): place for place, (image_path, _) in enumerate(images.items)}

    def update(self, prediction: ValPrediction, sample: SegmentationSample) -> None:
        """Adds an image."""
        mask_HW = prediction.mask_HW
        self.counts_KK += confusion(mask_HW, sample.mask_HW.to(mask_HW.device), len(self.names)).cpu()
        self.pixels[self._places[sample.name]] = prediction.pixels

    def state(self) -> tuple[Tensor, dict[int, PixelScores]]:
        """``counts_KK``, and pixels by position of their image."""
        return self.counts_KK, self.pixels

    def merge(self, states: Sequence[tuple[Tensor, dict[int, PixelScores]]]) -> None:
        """Sums ``counts_KK``, and joins the pixels."""
        self.counts_KK = torch.stack([counts_KK for counts_KK, _ in states]).sum(0)
        self.pixels = {place: each for _, pixels in states for place, each in pixels.items()}

    def compute(self) -> Evaluation:
        """mIoU, which is the score, and the other metrics."""
        if not self.counts_KK.any():
            raise DataError(
                f"{self.images.root}: no pixel of the {self.images.split} split has a label. Check its masks."
            )
        metrics = SegmentationMetrics.from_confusion(self.counts_KK)
        calibration = measure_calibration(self.pixels, self.temperature)
        return Evaluation(
            metrics=metrics.to_dict(self.names) | {"calibration": calibration}, score=metrics.miou, score_name="miou"
        )


def confusion(mask_HW: Tensor, truth_HW: Tensor, num_classes: int) -> Tensor:
    """Confusion matrix of ground truth (rows) and prediction (columns), (K, K) int64, without ignored pixels."""
    valid_HW = truth_HW != IGNORE
    pairs_P = truth_HW[valid_HW].long() * num_classes + mask_HW[valid_HW].long()
    return torch.bincount(pairs_P, minlength=num_classes**2).view(num_classes, num_classes)


@dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics in 0..1; the IoU of a class in neither ground truth nor prediction is None and excluded from the mean.

    Attributes:
        miou: Mean IoU over classes.
        pixel_accuracy: Fraction of valid pixels that are correct.
        mean_accuracy: Mean of the per-class accuracies, over classes in the ground truth.
        iou: Per class, ``intersection / union``.
        accuracy: Per class, fraction of its ground-truth pixels that are correct.
        share: Per class, fraction of the valid pixels in the ground truth.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    iou: tuple[float | None, ...]
    accuracy: tuple[float | None, ...]
    share: tuple[float, ...]

    @classmethod
    def from_confusion(cls, confusion_KK: Tensor) -> SegmentationMetrics:
        """Computes all metrics from a confusion matrix, in float64."""
        counts_KK = confusion_KK.double()
        hit_K, truth_K, predicted_K = counts_KK.diagonal(), counts_KK.sum(1), counts_KK.sum(0)
        union_K = truth_K + predicted_K - hit_K
        iou_K, accuracy_K = hit_K / union_K, hit_K / truth_K
        return cls(
            miou=float(iou_K.nanmean()),
            pixel_accuracy=float(hit_K.sum() / truth_K.sum()),
            mean_accuracy=float(accuracy_K.nanmean()),
            iou=_optional(iou_K),
            accuracy=_optional(accuracy_K),
            share=tuple((truth_K / truth_K.sum()).tolist()),
        )

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """JSON-ready, classes by name."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "classes": {
                name: {"iou": iou, "accuracy": accuracy, "share": share}
                for name, iou, accuracy, share in zip(names, self.iou, self.accuracy, self.share, strict=True)
            },
        }


def _optional(values_K: Tensor) -> tuple[float | None, ...]:
    return tuple(None if bool(torch.isnan(value)) else float(value) for value in values_K)
