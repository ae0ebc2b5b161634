"""Semantic segmentation from the outputs of an exported graph.

Shapes: K classes, h w size of the graph's input, H W pixels of the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.classes import ClassList
from vitsplit.data.resizing import resize_map
from vitsplit.errors import ExportError
from vitsplit.tasks.description import check_classes, check_temperature, fields
from vitsplit.tasks.segmentation.prediction import SegmentationPrediction

SCORES_AT_ONCE = 1 << 18
"""Maximum number of scores (pixels times classes) of the image in memory: 1 MB, within the cache."""


@dataclass(frozen=True)
class SegmentationOutputs:
    """Makes predictions from outputs.

    Attributes:
        batched: Whether the first dimension of the outputs is that of the batch.
        names: The outputs of the graph that it reads.
        classes: Names and colors of the classes.
        temperature: Temperature of the confidences.
    """

    batched: ClassVar[bool] = True
    names: ClassVar[tuple[str, ...]] = ("logits",)
    classes: ClassList
    temperature: float = 1.0

    @classmethod
    def from_description(cls, description: Any, where: str) -> Self:
        """Reads the description of the task in an untrusted card.

        Raises:
            BundleError: It is invalid; ``where`` is the file and the place in it, for the message.
        """
        recorded = fields(description, where, required=("classes", "colours"), optional=("temperature",))
        check_classes(recorded, where)
        colors = tuple((red, green, blue) for red, green, blue in recorded["colours"])
        classes = ClassList(names=tuple(recorded["classes"]), colors=colors)
        return cls(classes, check_temperature(recorded, where) or 1.0)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks the outputs of an image, as of a graph that is not the card's.

        Args:
            outputs: ``logits`` (K, h, w).

        Raises:
            ExportError: The logits have another shape.
        """
        shape = outputs["logits"].shape
        if len(shape) != 3 or shape[0] != len(self.classes):
            raise ExportError(
                f"The graph returned logits of shape {shape} for {len(self.classes)} classes. Export the bundle again."
            )

    def prediction(
        self, outputs: Mapping[str, NDArray[Any]], image_HWC: NDArray[np.uint8], input_size: tuple[int, int]
    ) -> SegmentationPrediction:
        """The classes of an image and their confidence, at its size.

        Args:
            outputs: ``logits`` (K, h, w).
            image_HWC: The image, uint8.
            input_size: Not used: the outputs have that size.
        """
        logits_Khw = np.asarray(outputs["logits"], dtype=np.float32)
        height, width = image_HWC.shape[:2]
        mask_HW = np.empty((height, width), np.uint8)
        confidence_HW = np.empty((height, width), np.float32)
        step = max(1, SCORES_AT_ONCE // (len(logits_Khw) * width))
        for top in range(0, height, step):
            rows = range(top, min(top + step, height))
            scores_KRW = resize_map(logits_Khw, (height, width), rows)
            class_RW = scores_KRW.argmax(0)
            below_KRW = scores_KRW - np.take_along_axis(scores_KRW, class_RW[None], 0)
            mask_HW[rows.start : rows.stop] = class_RW
            below_KRW *= np.float32(1 / self.temperature)
            confidence_HW[rows.start : rows.stop] = 1 / np.exp(below_KRW, out=below_KRW).sum(0)
        return SegmentationPrediction(mask_HW, self.classes, image_HWC, confidence_HW)
