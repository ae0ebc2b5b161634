"""Images of a folder of predictions with their regions: an object of detection, or a class of segmentation.

Shapes: H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.bundle import Card
from vitsplit.data.decoding import hex_color, image_size
from vitsplit.data.mask_coding import extent
from vitsplit.errors import DataError
from vitsplit.files import real_number, shown
from vitsplit.tasks.detection.annotations import MAX_COORDINATE, Box
from vitsplit.tasks.detection.coco import read_segmentation
from vitsplit.tasks.detection.masks import rasterize

ADVICE = "Remove the file, and repeat the command."


@dataclass(frozen=True)
class HeadLabels:
    """What a head can label.

    Attributes:
        head: Its name.
        names: Names of the classes.
        colors: Their colors, ``#rrggbb``.
        category_ids: Their ids in COCO's formats.
        masks: Whether regions have masks, and not only boxes.
        min_score: Objects with a lower score are left out.
    """

    head: str
    names: tuple[str, ...]
    colors: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: bool
    min_score: float

    @classmethod
    def of(cls, head: str, card: Card, min_score: float) -> HeadLabels:
        """The labels of a head, whose predictions must have ``Prediction.label_readers``."""
        description = card.description
        names = tuple(description["classes"])
        return cls(
            head,
            names,
            tuple(hex_color((red, green, blue)) for red, green, blue in description["colours"]),
            tuple(description.get("category_ids", range(len(names)))),
            description.get("masks", True),
            min_score,
        )


@dataclass(frozen=True)
class Region:
    """A region of an image.

    Attributes:
        label: Index of its class.
        score: In 0..1.
        box: (x, y, width, height) in pixels; of a mask, the smallest around its pixels, as label tools expect.
        mask_HW: bool; None: it is a box.
        encoded: The mask in COCO's run-length encoding, or None.
    """

    label: int
    score: float
    box: Box
    mask_HW: NDArray[np.bool_] | None
    encoded: Any


@dataclass(frozen=True)
class LabeledImage:
    """An image and its predictions on disk.

    Attributes:
        path: The image.
        name: Its path in the folder of the inputs, with slashes.
        file: The predictions.
        read: Reads them, see ``Prediction.label_readers``.
        labels: The head.
    """

    path: Path
    name: str
    file: Path
    read: Callable[[Path], list[Any]]
    labels: HeadLabels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, upright."""
        width, height = image_size(self.path)
        return height, width

    def regions(self) -> Iterator[Region]:
        """Reads the regions, without objects that have no pixels or a low score.

        Raises:
            DataError: The file is invalid.
        """
        indices = {category_id: index for index, category_id in enumerate(self.labels.category_ids)}
        size = self.size
        for number, entry in enumerate(self.read(self.file), start=1):
            where = f"{self.file}: object {number}"
            if not isinstance(entry, dict) or type(entry.get("category_id")) is not int:
                raise DataError(f"{where} is {shown(entry)}, without a category_id. {ADVICE}")
            if entry["category_id"] not in indices:
                raise DataError(
                    f"{where}: {self.labels.head} has no category_id {shown(entry['category_id'])}. {ADVICE}"
                )
            score = real_number(entry.get("score"), f"{where}: score", 0, 1, advice=ADVICE)
            if score < self.labels.min_score:
                continue
            mask_HW = _mask(entry.get("segmentation"), size, where)
            if mask_HW is not None and not mask_HW.any():
                continue
            box = _box(entry.get("bbox"), where) if mask_HW is None else box_around(mask_HW)
            yield Region(indices[entry["category_id"]], score, box, mask_HW, entry.get("segmentation"))


def box_around(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box around the pixels of a mask: x, y, width, height."""
    left, top, right, bottom = extent(mask_HW)
    return left, top, right - left, bottom - top


def _mask(value: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_] | None:
    if value is None:
        return None
    height, width = size
    segmentation, problem = read_segmentation(value, (width, height))
    if segmentation is None or not isinstance(value, dict):
        details = problem or f"not a run-length encoding, but {shown(value)}"
        raise DataError(f"{where}: segmentation: {details}. {ADVICE}")
    return rasterize(segmentation, height, width).astype(bool)


def _box(value: Any, where: str) -> Box:
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: bbox must be x, y, width and height, not {shown(value)}. {ADVICE}")
    x, y, width, height = (
        real_number(part, f"{where}: bbox", least, MAX_COORDINATE, advice=ADVICE)
        for part, least in zip(value, (-MAX_COORDINATE, -MAX_COORDINATE, 0, 0), strict=True)
    )
    return x, y, width, height
