"""Conversion of polygons and run-length encodings to masks, as in pycocotools.

Shapes: H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from vitsplit.data.mask_coding import decompress
from vitsplit.tasks.detection.annotations import Box, Segmentation

MERGED = 16
"""Polygons merged in one step."""


def run_problem(counts: Any, height: int, width: int) -> str:
    """Describes a problem with the runs of a run-length encoding (list or compressed), or an empty string.

    COCO's decoders do not check compressed encodings, and would write out of bounds.
    """
    if isinstance(counts, str):
        runs = decompress(counts)
        if runs is None:
            return "invalid compressed runs"
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        if any(count < 0 or count > height * width for count in counts):
            return f"a run is not in 0 to {height * width} pixels"
        runs = np.array(counts, dtype=np.int64)
    else:
        return '"counts" must be a list of non-negative integers, or a compressed string'
    if runs.size and (runs.min() < 0 or runs.max() > height * width):
        return f"a run is not in 0 to {height * width} pixels"
    total = int(runs.sum())
    return f"its runs cover {total} pixels of {height * width}" * (total != height * width)


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Converts to a compressed run-length encoding: ``size`` [H, W] and ``counts``. Polygons are merged."""
    if isinstance(segmentation, tuple):
        parts = mask_api.frPyObjects([part.tolist() for part in segmentation], height, width)
        while len(parts) > MERGED:  # merging one by one would take quadratic time
            parts = [mask_api.merge(parts[start : start + MERGED]) for start in range(0, len(parts), MERGED)]
        return mask_api.merge(parts)
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def rasterize(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """Converts to ``mask_HW`` of 0 and 1; runs must be valid, see ``run_problem``."""
    return mask_api.decode(to_rle(segmentation, height, width))


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Area of a mask in pixels; runs must be valid, see ``run_problem``."""
    return float(mask_api.area(to_rle(segmentation, height, width)))


def box_polygon(box: Box) -> Segmentation:
    """Converts a box (x, y, width, height) to a polygon."""
    x, y, width, height = box
    return (np.array([x, y, x + width, y, x + width, y + height, x, y + height]),)
