"""Images with depth maps: reading one, a batch of them, and the training samples.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitsplit.data.content_size import Extent, move_extents, pin_extents, stack_extents
from vitsplit.data.folders import relative_names
from vitsplit.data.images import read_image, row_blocks
from vitsplit.errors import DataError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.files import read_values

PLAUSIBLE_METERS = (0.01, 1000.0)
"""A median depth outside this range suggests another unit."""
MEDIAN_PIXELS = 1 << 22
"""Maximum number of pixels for a median: sorting more takes seconds and gigabytes."""
MEAN_MAPS = 64
"""Maximum number of depth maps whose mean is computed."""


class MissingScaleError(DataError):
    """An integer depth map of unknown unit."""


@dataclass(frozen=True)
class DepthSample:
    """An image and its depth map.

    Attributes:
        image_CHW: uint8, RGB.
        depth_HW: float32, meters; 0 where invalid.
        name: The image's file.
        extent: Size of the image content, if the padding is to be the mean color; None: the padding is black.
    """

    image_CHW: Tensor
    depth_HW: Tensor
    name: str
    extent: Extent | None = None


@dataclass(frozen=True)
class DepthBatch:
    """Samples of one size, stacked."""

    image_BCHW: Tensor
    depth_BHW: Tensor
    names: list[str]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> DepthBatch:
        """The batch on a device."""
        return DepthBatch(
            self.image_BCHW.to(device, non_blocking=True),
            self.depth_BHW.to(device, non_blocking=True),
            self.names,
            move_extents(self.extent_B2, device),
        )

    def pin_memory(self) -> DepthBatch:
        """The batch in pinned memory; called by the data loader."""
        return DepthBatch(
            self.image_BCHW.pin_memory(), self.depth_BHW.pin_memory(), self.names, pin_extents(self.extent_B2)
        )


def collate(samples: Sequence[DepthSample]) -> DepthBatch:
    """Stacks samples of one size."""
    return DepthBatch(
        torch.stack([sample.image_CHW for sample in samples]),
        torch.stack([sample.depth_HW for sample in samples]),
        [sample.name for sample in samples],
        stack_extents([sample.extent for sample in samples]),
    )


@dataclass(frozen=True)
class DepthSet:
    """One split of a data set.

    Attributes:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        items: Image file and depth file of every sample.
        scale: Meters per unit of the depth files; None if unspecified, in which case floats are meters.
    """

    root: Path
    split: str
    items: tuple[tuple[Path, Path], ...]
    scale: float | None = None

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> dict[str, Path]:
        """Name in the data set to file, for images and labels in the order of the samples, and the label definition."""
        scheme = self.root / "depth.json"
        return relative_names(self.root, [*itertools.chain(*self.items), *[scheme] * scheme.is_file()])

    def load(self, index: int) -> DepthSample:
        """Reads one sample.

        Raises:
            DataError: A file cannot be read, the sizes differ, or the unit is unknown.
        """
        image_path, depth_path = self.items[index]
        image_CHW = read_image(image_path)
        depth_HW = load_depth(depth_path, self.scale)
        require_same_size(image_CHW.shape[-2:], depth_HW, image_path, depth_path)
        return DepthSample(image_CHW, depth_HW, str(image_path))


def load_depth(path: Path, scale: float | None) -> Tensor:
    """Reads ``depth_HW`` as float32 meters; zero, negative and non-finite values become 0.

    Args:
        path: Single-channel PNG or TIFF (8 or 16 bits, or float), NPY, or EXR.
        scale: Meters per unit in the file; None: floats are meters.

    Raises:
        MissingScaleError: The file contains integers and ``scale`` is None.
        DataError: The file cannot be read or is not a depth map.
    """
    values_HW = read_values(path)
    if scale is None and values_HW.dtype.kind != "f":
        raise MissingScaleError(missing_scale(path))
    depth_HW = np.empty(values_HW.shape, np.float32)
    for rows in row_blocks(*values_HW.shape):
        block_HW = depth_HW[rows]
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, hence invalid
            block_HW[...] = values_HW[rows]
            block_HW *= np.float32(1.0 if scale is None else scale)
        block_HW[~((block_HW > 0) & (block_HW < np.inf))] = 0.0
    return torch.from_numpy(depth_HW)


def keep_range(depth_HW: Tensor, min_depth: float, max_depth: float | None) -> Tensor:
    """Sets depths not strictly between the bounds (meters) to 0, as invalid in training and evaluation."""
    valid_HW = depth_HW > min_depth
    if max_depth is not None:
        valid_HW &= depth_HW < max_depth
    return torch.where(valid_HW, depth_HW, 0.0)


def keep_valid(depth_HW: Tensor, config: DepthConfig, path: Path) -> Tensor:
    """``keep_range`` with the bounds of the settings.

    Raises:
        DataError: No valid pixel is left; the message names the file.
    """
    valid_HW = keep_range(depth_HW, config.min_depth, config.max_depth)
    if not valid_HW.any():
        raise DataError(_nothing_valid(path, depth_HW, config))
    return valid_HW


def unit_warning(depth_HW: Tensor, path: Path) -> str | None:
    """The warning for a map whose median valid depth is outside 0.01..1000 m; None if inside, or all invalid."""
    median = median_depth(depth_HW)
    if median is None:
        return None
    low, high = PLAUSIBLE_METERS
    if low <= median <= high:
        return None
    return (
        f"{path}: the median depth is {median:.4g} m, outside {low:g}..{high:g} m: the unit may be wrong. "
        "Set the meters per unit of the files with --depth-scale (0.001: millimeters), or in depth.json as "
        '{"scale": 0.001}.'
    )


def median_depth(depth_HW: Tensor) -> float | None:
    """The median of the valid depths, subsampled above ``MEDIAN_PIXELS``; None if there are none."""
    flat_P = depth_HW.numpy().ravel()
    step = max(1, int(np.count_nonzero(flat_P)) // MEDIAN_PIXELS)
    blocks = (flat_P[rows] for rows in row_blocks(len(flat_P), 1))
    some_P = np.concatenate([block_P[block_P > 0][::step].copy() for block_P in blocks])
    return float(torch.from_numpy(some_P).median()) if len(some_P) else None


def geometric_mean_depth(images: DepthSet, config: DepthConfig) -> float:
    """The geometric mean in meters of the valid depths of at most ``MEAN_MAPS`` maps, each weighted equally.

    A constant prediction of this depth has the mean log error 0.

    Raises:
        DataError: No pixel of these maps has a valid depth.
    """
    indices = np.linspace(0, len(images) - 1, min(MEAN_MAPS, len(images))).astype(int).tolist()
    logs = []
    for index in indices:
        depth_HW = keep_range(load_depth(images.items[index][1], images.scale), config.min_depth, config.max_depth)
        if depth_HW.any():
            logs.append(float(depth_HW[depth_HW > 0].double().log().mean()))
    if not logs:
        raise DataError(
            f"{images.root}: none of {len(indices)} depth maps of the {images.split} split has a valid depth. Check "
            "them with `vitsplit data check`."
        )
    return math.exp(statistics.fmean(logs))


def missing_scale(path: Path) -> str:
    """The error message for integer depth maps of unknown unit."""
    return (
        f"{path}: the depth map holds integers of unknown unit. Give the meters per unit with --depth-scale "
        "(0.001: millimeters; 0.00390625: 1/256 m, as in KITTI), or in depth.json in the data folder as "
        '{"scale": 0.001}.'
    )


def require_same_size(size: Sequence[int], depth_HW: Tensor, image_path: Path, depth_path: Path) -> None:
    """Raises a DataError if an image (height and width) and its depth map have different sizes."""
    height, width = size
    if depth_HW.shape == (height, width):
        return
    depth_height, depth_width = depth_HW.shape
    raise DataError(
        f"{depth_path}: the depth map is {depth_width}x{depth_height} (width x height), but its image {image_path} is "
        f"{width}x{height}. Export both at the same size (resize depth by nearest neighbor), or remove the pair."
    )


def _nothing_valid(path: Path, depth_HW: Tensor, config: DepthConfig) -> str:
    above = "" if config.max_depth is None else f" and below --max-depth {config.max_depth:g} m"
    found = "every value is 0, negative or not finite"
    if depth_HW.any():
        found = f"its depths range from {depth_HW[depth_HW > 0].min():.4g} to {depth_HW.max():.4g} m"
    return (
        f"{path}: no pixel has a valid depth (above --min-depth {config.min_depth:g} m{above}): {found}. "
        "Remove the pair, or correct the map or the option."
    )
