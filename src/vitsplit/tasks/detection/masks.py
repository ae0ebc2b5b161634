"""Conversion of polygons and run-length encodings to masks, as in pycocotools.

Shapes: H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from vitsplit.tasks.detection.annotations import Box, Segmentation

MERGED = 16
"""Polygons merged in one step."""
LONGEST_RUN = 7
"""Maximum characters of one run in a compressed encoding (five of 32 bits each)."""


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


def decompress(text: str) -> NDArray[np.int64] | None:
    """Decodes COCO's compressed runs; None if invalid.

    Characters from "0" encode six bits: five bits of a number, lowest first, and a continuation bit; the highest bit
    of the last character is the sign. From the fourth run on, numbers are differences to the second-to-last run.
    """
    try:
        codes_C = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    except UnicodeEncodeError:
        return None
    if not codes_C.size:
        return codes_C
    ends_R = np.flatnonzero(codes_C & 32 == 0)
    if codes_C.min() < 0 or codes_C.max() > 63 or not ends_R.size or ends_R[-1] != len(codes_C) - 1:
        return None
    starts_R = np.concatenate([[0], ends_R[:-1] + 1])
    lengths_R = ends_R - starts_R + 1
    if lengths_R.max() > LONGEST_RUN:
        return None
    place_C = np.arange(len(codes_C)) - np.repeat(starts_R, lengths_R)
    runs_R = np.add.reduceat((codes_C & 31) << 5 * place_C, starts_R)
    runs_R -= np.where(codes_C[ends_R] & 16, 1 << 5 * lengths_R, 0)
    runs_R[1::2] = runs_R[1::2].cumsum()
    runs_R[2::2] = runs_R[2::2].cumsum()
    return runs_R


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
