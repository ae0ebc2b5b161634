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

if TYPE_CHECKING:
    from vitsplit.tasks.segmentation.data import SegmentationSample, SegmentationSet


class SegmentationMetric:
    """Counts pixels by ground truth and prediction; see ``Metric``.

    Args:
        images: The data set, for its classes and for error messages.
    """

    def __init__(self, images: SegmentationSet) -> None:
        self.images = images
        self.names = images.classes.names
        self.counts_KK = torch.zeros(len(self.names), len(self.names), dtype=torch.int64)

    def update(self, prediction: Tensor, sample: SegmentationSample) -> None:
        """Adds an image: the predicted ``mask_HW``, on any device, and the sample."""
        self.counts_KK += confusion(prediction, sample.mask_HW.to(prediction.device), len(self.names)).cpu()

    def state(self) -> Tensor:
        """``counts_KK``."""
        return self.counts_KK

    def merge(self, states: Sequence[Tensor]) -> None:
        """Sums ``counts_KK``."""
        self.counts_KK = torch.stack([*states]).sum(0)

    def compute(self) -> Evaluation:
        """mIoU, which is the score, and the other metrics."""
        if not self.counts_KK.any():
            raise DataError(
                f"{self.images.root}: no pixel of the {self.images.split} split has a label. Check its masks."
            )
        metrics = SegmentationMetrics.from_confusion(self.counts_KK)
        return Evaluation(metrics=metrics.to_dict(self.names), score=metrics.miou, score_name="miou")


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
