"""COCO's compressed run-length encoding, and masks from the bins of their boxes, with numpy alone.

Shapes: H W pixels, R runs, C characters, m bins per side of a mask. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.resizing import resize_map

LONGEST_RUN = 7
"""Maximum characters of one run in a compressed encoding (five of 32 bits each)."""
_SHIFTS_7 = 5 * np.arange(LONGEST_RUN)


def run_starts(pixels_P: NDArray[Any]) -> NDArray[np.int64]:
    """Indices at which runs of equal values begin, the first of which is 0."""
    return np.concatenate([[0], np.flatnonzero(pixels_P[1:] != pixels_P[:-1]) + 1])


def extent(mask_HW: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box around the pixels of a mask, which has some: x1, y1, x2, y2."""
    columns, rows = np.flatnonzero(mask_HW.any(0)), np.flatnonzero(mask_HW.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run-length encoding, JSON-ready."""
    height, width = mask_HW.shape
    columns = np.flatnonzero(mask_HW.any(0))
    left, right = (int(columns[0]), int(columns[-1]) + 1) if columns.size else (0, 0)
    # Only the columns with pixels of the object, which is most of the time of small ones.
    pixels_P = np.pad(mask_HW[:, left:right].T.ravel(), 1)
    changes = np.flatnonzero(pixels_P[1:] != pixels_P[:-1]) + left * height
    # The first run is of zeros, and the last one ends with the image.
    bounds = np.append(0, changes)
    if bounds[-1] < height * width or not changes.size:
        bounds = np.append(bounds, height * width)
    return {"size": [height, width], "counts": compress(np.diff(bounds))}


def encode_labels(labels_HW: NDArray[np.uint8]) -> dict[int, dict[str, Any]]:
    """``encode`` of the mask of every value that occurs, by value, in one pass over the pixels."""
    pixels_P = labels_HW.T.ravel()
    starts_R = run_starts(pixels_P)
    ends_R = np.append(starts_R[1:], pixels_P.size)
    values_R = pixels_P[starts_R]
    found = {}
    for value in np.unique(values_R).tolist():
        own_R = values_R == value
        bounds = np.append(0, np.stack([starts_R[own_R], ends_R[own_R]], 1))
        if bounds[-1] < pixels_P.size:
            bounds = np.append(bounds, pixels_P.size)
        found[value] = {"size": [int(side) for side in labels_HW.shape], "counts": compress(np.diff(bounds))}
    return found


def compress(runs_R: NDArray[np.int64]) -> str:
    """Encodes runs as COCO's compressed characters, see ``decompress``."""
    values_R = runs_R.copy()
    values_R[3:] -= runs_R[1:-2]
    codes_R7 = values_R[:, None] >> _SHIFTS_7 & 31
    rest_R7 = values_R[:, None] >> _SHIFTS_7 + 5
    is_last_R7 = rest_R7 == np.where(codes_R7 & 16, -1, 0)
    place_R7 = np.arange(LONGEST_RUN) - is_last_R7.argmax(1)[:, None]
    codes_R7 = codes_R7 + np.where(place_R7 < 0, 32, 0) + ord("0")
    return codes_R7[place_R7 <= 0].astype(np.uint8).tobytes().decode("ascii")


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


def paste(bins_mm: NDArray[np.float32], box_4: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """An object's mask, (H, W) bool, from its probabilities on the bins of its box; as torchvision's pasting."""
    # One bin is added on each side, so that the border between the outer bins and the background is interpolated.
    padded_mm = np.pad(bins_mm, 1)
    half_2 = (box_4[2:] - box_4[:2]) * np.float32(0.5) * np.float32(len(padded_mm) / len(bins_mm))
    center_2 = (box_4[2:] + box_4[:2]) * np.float32(0.5)
    (left, top), (right, bottom) = (center_2 - half_2).astype(int).tolist(), (center_2 + half_2).astype(int).tolist()
    inner_hw = resize_map(padded_mm[None], (bottom - top + 1, right - left + 1))[0] > 0.5
    mask_HW = np.zeros(size, dtype=bool)
    y, x = max(top, 0), max(left, 0)
    mask_HW[y : bottom + 1, x : right + 1] = inner_hw[y - top : size[0] - top, x - left : size[1] - left]
    return mask_HW
