"""Sizes of resized images, and resizing without PyTorch.

Shapes: C channels, H W pixels, h w another size, R rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, ...]
"""Height and width."""


def fit_size(size: Size, image_scale: tuple[int, int] | None) -> tuple[int, int]:
    """The largest size of the same aspect ratio within ``image_scale``, as mmseg's ``keep_ratio``.

    Args:
        size: Height and width.
        image_scale: Longest and shortest side, in either order; None: unchanged size.

    Returns:
        Height and width: neither the longer side exceeds the longest, nor the shorter the shortest.

    Example:
        >>> fit_size((480, 640), (2048, 512))
        (512, 683)
    """
    height, width = size
    if image_scale is None:
        return height, width
    scale = min(max(image_scale) / max(size), min(image_scale) / min(size))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image_HWC: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resizes an RGB image, bilinear with antialiasing.

    As torchvision's ``resize``, within one level of 255 of the exact result. On photographs 1 % of the values differ
    from torchvision's by one level, and one in 100,000 by two.
    """
    if image_HWC.shape[:2] == size:
        return image_HWC
    picture = Image.fromarray(image_HWC).resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=None)
    return np.asarray(picture)


def resize_map(map_Chw: NDArray[np.float32], size: tuple[int, int], rows: range | None = None) -> NDArray[np.float32]:
    """Resizes a map, bilinear without antialiasing, as ``F.interpolate(..., align_corners=False)``.

    Args:
        map_Chw: float32.
        size: ``(H, W)``.
        rows: The rows of the result to compute; None: all.

    Returns:
        ``(C, R, W)`` float32.
    """
    rows = range(size[0]) if rows is None else rows
    if map_Chw.shape[1:] == size:
        return map_Chw[:, rows.start : rows.stop]
    above_R, below_R, part_R = _neighbors(map_Chw.shape[1], size[0], rows)
    left_W, right_W, part_W = _neighbors(map_Chw.shape[2], size[1], range(size[1]))
    strip_CRw = _lerp(map_Chw[:, above_R], map_Chw[:, below_R], part_R[:, None])
    return _lerp(strip_CRw[..., left_W], strip_CRw[..., right_W], part_W)


def _neighbors(old: int, new: int, places: range) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For pixels of the new side: the pixels of the old before and after each center, and the share of the latter."""
    centers = np.maximum((np.arange(places.start, places.stop) + 0.5) * (old / new) - 0.5, 0)
    before = np.minimum(centers.astype(np.int64), old - 1)
    return before, np.minimum(before + 1, old - 1), (centers - before).astype(np.float32)


def _lerp(first: NDArray[np.float32], second: NDArray[np.float32], part: NDArray[np.float32]) -> NDArray[np.float32]:
    return (1 - part) * first + part * second
