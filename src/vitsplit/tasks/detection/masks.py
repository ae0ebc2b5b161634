"""Polygons and run-length encodings to masks, by the rules of COCO's own tool.

Shapes: H W pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray

from vitsplit.tasks.detection.annotations import Box, Segmentation

MERGED = 16
"""Polygons that are united in one step."""
LONGEST_RUN = 7
"""The most characters of one run in a compressed encoding: five bits each, of 32."""


def runs_fault(counts: Any, height: int, width: int) -> str:
    """What is wrong with the runs of a run-length encoding, listed or compressed; an empty string if they are right.

    COCO's own decoders trust a compressed one, and write where its runs lead.
    """
    if isinstance(counts, str):
        runs = decompress(counts)
        if runs is None:
            return "its compressed runs cannot be decoded"
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        if any(count < 0 or count > height * width for count in counts):
            return f"a run is not in 0 to {height * width} pixels"
        runs = np.array(counts, dtype=np.int64)
    else:
        return '"counts" must be a list of whole numbers from 0, or a compressed string'
    if runs.size and (runs.min() < 0 or runs.max() > height * width):
        return f"a run is not in 0 to {height * width} pixels"
    total = int(runs.sum())
    return f"its runs cover {total} pixels of {height * width}" * (total != height * width)


def decompress(text: str) -> NDArray[np.int64] | None:
    """The runs in COCO's compressed form, or None if it is broken.

    Characters from "0" hold six bits: five of a number, the lowest first, and whether more follow; the last one's fifth
    is the sign. From the fourth run on, a number is the difference to the run before the last.
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
    """Makes a compressed run-length encoding: ``size`` [H, W] and ``counts``. Polygons are united."""
    if isinstance(segmentation, tuple):
        parts = mask_api.frPyObjects([part.tolist() for part in segmentation], height, width)
        while len(parts) > MERGED:  # one after another would take time by the square of their number
            parts = [mask_api.merge(parts[start : start + MERGED]) for start in range(0, len(parts), MERGED)]
        return mask_api.merge(parts)
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def rasterise(segmentation: Segmentation, height: int, width: int) -> NDArray[np.uint8]:
    """Makes ``mask_HW`` of 0 and 1; runs must be right, see ``runs_fault``."""
    return mask_api.decode(to_rle(segmentation, height, width))


def mask_area(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a mask; runs must be right, see ``runs_fault``."""
    return float(mask_api.area(to_rle(segmentation, height, width)))


def box_polygon(box: Box) -> Segmentation:
    """A box (x, y, width, height) as a polygon."""
    x, y, width, height = box
    return (np.array([x, y, x + width, y, x + width, y + height, x, y + height]),)
