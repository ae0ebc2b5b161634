"""Images with class masks: reading one, a batch of them, and the training samples.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitsplit.data.classes import ClassList, LabelScheme
from vitsplit.data.content_size import Extent, move_extents, pin_extents, stack_extents
from vitsplit.data.folders import relative_names
from vitsplit.data.images import read_image, read_mask, row_blocks
from vitsplit.data.mat import read_mat_mask
from vitsplit.errors import DataError

MOST_VALUES = 1000
"""Maximum number of invalid values of a mask that are counted for the error message."""


class LabelRangeError(DataError):
    """A mask contains values that are not classes."""


@dataclass(frozen=True)
class SegmentationSample:
    """An image and its mask.

    Attributes:
        image_CHW: uint8, RGB.
        mask_HW: uint8, class indices; 255 is ignored.
        name: The image's file.
        extent: Size of the image content, if the padding is to be the mean color; None: the padding is black.
    """

    image_CHW: Tensor
    mask_HW: Tensor
    name: str
    extent: Extent | None = None


@dataclass(frozen=True)
class SegmentationBatch:
    """Samples of one size, stacked."""

    image_BCHW: Tensor
    mask_BHW: Tensor
    names: list[str]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> SegmentationBatch:
        """The batch on a device."""
        return SegmentationBatch(
            self.image_BCHW.to(device, non_blocking=True),
            self.mask_BHW.to(device, non_blocking=True),
            self.names,
            move_extents(self.extent_B2, device),
        )

    def pin_memory(self) -> SegmentationBatch:
        """The batch in pinned memory; called by the data loader."""
        return SegmentationBatch(
            self.image_BCHW.pin_memory(), self.mask_BHW.pin_memory(), self.names, pin_extents(self.extent_B2)
        )


def collate(samples: Sequence[SegmentationSample]) -> SegmentationBatch:
    """Stacks samples of one size."""
    return SegmentationBatch(
        torch.stack([sample.image_CHW for sample in samples]),
        torch.stack([sample.mask_HW for sample in samples]),
        [sample.name for sample in samples],
        stack_extents([sample.extent for sample in samples]),
    )


@dataclass(frozen=True)
class SegmentationSet:
    """One split of a data set.

    Attributes:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        labels: The classes, and the mapping from mask values to class indices.
        items: Image file and mask file of every sample.
    """

    root: Path
    split: str
    labels: LabelScheme
    items: tuple[tuple[Path, Path], ...]

    @property
    def classes(self) -> ClassList:
        """The classes, in the order of their indices."""
        return self.labels.classes

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> dict[str, Path]:
        """Name in the data set to file, for images and labels in the order of the samples, and the label definition."""
        scheme = self.root / "classes.json"
        return relative_names(self.root, [*itertools.chain(*self.items), *[scheme] * scheme.is_file()])

    def load(self, index: int) -> SegmentationSample:
        """Reads one sample.

        Raises:
            DataError: A file cannot be read, the two sizes differ, or a label is out of range.
        """
        image_path, mask_path = self.items[index]
        image_CHW = read_image(image_path)
        mask_HW = load_mask(mask_path, self.labels)
        require_same_size(image_CHW.shape[-2:], mask_HW, image_path, mask_path)
        return SegmentationSample(image_CHW, mask_HW, str(image_path))


def load_mask(path: Path, labels: LabelScheme) -> Tensor:
    """Reads ``mask_HW`` as uint8 class indices, 255 where ignored.

    Raises:
        LabelRangeError: The mask contains values that are not classes; the message has the file, values and counts.
        DataError: The file cannot be read.
    """
    raw_HW = (read_mat_mask(path) if path.suffix == ".mat" else read_mask(path, labels.mask_colors)).numpy()
    if labels.mask_colors is not None:
        return torch.from_numpy(raw_HW)
    lookup = labels.lookup
    mask_HW = np.empty(raw_HW.shape, np.uint8)
    for rows in row_blocks(*raw_HW.shape):
        block_HW = raw_HW[rows]
        indices_HW = lookup[_within(block_HW, lookup)]
        if indices_HW.min() < 0 or block_HW.min() < 0 or block_HW.max() >= len(lookup):
            raise LabelRangeError(f"{path}: {_out_of_range(raw_HW, labels)}")
        mask_HW[rows] = indices_HW
    return torch.from_numpy(mask_HW)


def require_same_size(size: Sequence[int], mask_HW: Tensor, image_path: Path, mask_path: Path) -> None:
    """Raises a DataError if an image (height and width) and its mask have different sizes."""
    height, width = size
    if mask_HW.shape == (height, width):
        return
    mask_height, mask_width = mask_HW.shape
    rotated = " The image may have been rotated by its EXIF orientation: save it upright." * (
        (mask_width, mask_height) == (height, width)
    )
    raise DataError(
        f"{mask_path}: the mask is {mask_width}x{mask_height} (width x height), but its image {image_path} is "
        f"{width}x{height}. Export the mask at the size of the image, or remove the pair.{rotated}"
    )


def _within(raw_HW: np.ndarray, lookup: np.ndarray) -> np.ndarray:
    """Values clipped to the range of a lookup table, which covers all of 8 bits."""
    return raw_HW if raw_HW.dtype == np.uint8 else raw_HW.clip(0, len(lookup) - 1)


def _out_of_range(raw_HW: np.ndarray, labels: LabelScheme) -> str:
    """The error message for a mask with invalid values: the smallest five, and their pixel counts."""
    lookup = labels.lookup
    counts: Counter[int] = Counter()
    for rows in row_blocks(*raw_HW.shape):
        block_HW = raw_HW[rows]
        known_HW = (block_HW >= 0) & (block_HW < len(lookup))
        known_HW &= lookup[_within(block_HW, lookup)] >= 0
        unknown, pixels = np.unique(block_HW[~known_HW], return_counts=True)
        counts.update(dict(zip(unknown.tolist(), pixels.tolist(), strict=True)))
        # An image mistaken for a mask may have millions of values; those dropped are larger than the five reported.
        if len(counts) > MOST_VALUES:
            counts = Counter({value: counts[value] for value in sorted(counts)[:MOST_VALUES]})
    found = sorted(counts)
    values = ", ".join(f"{value} ({counts[value]} pixels)" for value in found[:5])
    more = "" if len(found) <= 5 else f" and {len(found) - 5 if len(found) < MOST_VALUES else 'many'} more"
    return (
        f"label out of range: value {values}{more}, but {labels.source} has {len(labels.classes)} classes "
        f"({labels.describe_values()}). Correct the mask, or map the value in classes.json, for example "
        f'"labels": {{"{found[0]}": "ignore", ...}}.'
    )
