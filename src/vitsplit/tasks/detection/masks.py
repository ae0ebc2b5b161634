"""Polygons and run-length encodings to masks, by the rules of COCO's own tool.

Shapes: H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from vitsplit.tasks.detection.annotations import Box, Segmentation


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """Makes a compressed run-length encoding: ``size`` [H, W] and ``counts``. Polygons are united."""
    if isinstance(segmentation, tuple):
        return mask_api.merge(mask_api.frPyObjects([part.tolist() for part in segmentation], height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def rasterise(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """Makes ``mask_HW`` of 0 and 1.

    Raises:
        ValueError: The runs do not add up to ``height * width``.
    """
    return mask_api.decode(to_rle(segmentation, height, width))


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a mask.

    Raises:
        ValueError: The runs do not add up to ``height * width``.
    """
    if isinstance(segmentation, dict):  # only decoding tells whether a compressed one is whole
        return float(rasterise(segmentation, height, width).sum())
    return float(mask_api.area(to_rle(segmentation, height, width)))


def box_polygon(box: Box) -> Segmentation:
    """A box (x, y, width, height) as a polygon."""
    x, y, width, height = box
    return (np.array([x, y, x + width, y, x + width, y + height, x, y + height]),)
