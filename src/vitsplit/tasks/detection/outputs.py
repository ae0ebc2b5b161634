"""Objects from the outputs of an exported graph.

Shapes: H W pixels, N objects, m bins per side of a mask. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.classes import ClassList
from vitsplit.errors import BundleError, ExportError
from vitsplit.files import shown, whole_number
from vitsplit.tasks.description import ADVICE, check_classes, fields
from vitsplit.tasks.detection.prediction import DetectionPrediction


@dataclass(frozen=True)
class DetectionOutputs:
    """Makes predictions from outputs.

    Attributes:
        batched: Whether the first dimension of the outputs is that of the batch.
        classes: Names and colors of the classes.
        category_ids: The id of each class in the training annotations.
        masks: Whether the graph has masks.
    """

    batched: ClassVar[bool] = False
    classes: ClassList
    category_ids: tuple[int, ...]
    masks: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs of the graph that it reads."""
        return ("boxes", "scores", "labels", *(["masks"] if self.masks else []))

    @classmethod
    def from_description(cls, description: Any, where: str) -> Self:
        """Reads the description of the task in an untrusted card.

        Raises:
            BundleError: It is invalid; ``where`` is the file and the place in it, for the message.
        """
        recorded = fields(description, where, required=("classes", "colours", "category_ids", "masks"))
        check_category_ids(recorded["category_ids"], check_classes(recorded, where), where)
        if not isinstance(recorded["masks"], bool):
            raise BundleError(f"{where}: masks must be true or false, not {shown(recorded['masks'])}. {ADVICE}")
        colors = tuple((red, green, blue) for red, green, blue in recorded["colours"])
        classes = ClassList(names=tuple(recorded["classes"]), colors=colors)
        return cls(classes, tuple(recorded["category_ids"]), recorded["masks"])

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Checks the outputs of an image, as of a graph that is not the card's.

        Args:
            outputs: ``boxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) and ``masks`` (N, m, m).

        Raises:
            ExportError: The outputs have other shapes, or a label is not a class.
        """
        label_N = outputs["labels"]
        shapes = {name: outputs[name].shape for name in self.names}
        count = label_N.size
        expected: dict[str, tuple[int, ...]] = {"boxes": (count, 4), "scores": (count,), "labels": (count,)}
        if self.masks:
            expected["masks"] = (count, *shapes["masks"][-1:] * 2)
        if shapes != expected or not ((label_N >= 0) & (label_N < len(self.classes))).all():
            raise ExportError(
                f"The graph returned outputs of shapes {shapes}, not {expected}, or a label that is not one of "
                f"{len(self.classes)} classes. Export the bundle again."
            )

    def prediction(
        self, outputs: Mapping[str, NDArray[Any]], image_HWC: NDArray[np.uint8], input_size: tuple[int, int]
    ) -> DetectionPrediction:
        """The objects in an image, in its pixels.

        Args:
            outputs: ``boxes`` (N, 4) in pixels of the input, ``scores`` (N,), ``labels`` (N,) and ``masks`` (N, m, m).
            image_HWC: The image, uint8.
            input_size: Height and width of the image in the graph's input.
        """
        boxes_N4, scores_N = (np.asarray(outputs[name], dtype=np.float32) for name in ("boxes", "scores"))
        labels_N = np.asarray(outputs["labels"], dtype=np.int64)
        bins_Nmm = np.asarray(outputs["masks"], dtype=np.float32) if self.masks else None
        height, width = image_HWC.shape[:2]
        scale_4 = np.array([width / input_size[1], height / input_size[0]] * 2, dtype=np.float32)
        boxes_N4 = np.clip(boxes_N4 * scale_4, 0, np.array([width, height] * 2, dtype=np.float32))
        keep_N = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)
        return DetectionPrediction(
            boxes_N4[keep_N],
            labels_N[keep_N],
            scores_N[keep_N],
            None if bins_Nmm is None else bins_Nmm[keep_N],
            self.classes,
            self.category_ids,
            image_HWC,
        )


def check_category_ids(category_ids: Any, count: int, where: str) -> None:
    """Checks the ids of classes in an untrusted description.

    Raises:
        BundleError: They are not ``count`` different numbers.
    """
    if not isinstance(category_ids, list) or len(category_ids) != count:
        raise BundleError(f"{where}: category_ids must be a list of {count}, one for each class. {ADVICE}")
    for category_id in category_ids:
        whole_number(category_id, f"{where}: category_ids", 0, 2**31 - 1, error=BundleError, advice=ADVICE)
    if len(set(category_ids)) < count:
        raise BundleError(f"{where}: category_ids has duplicates. {ADVICE}")
