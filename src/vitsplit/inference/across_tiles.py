"""Merging of detections of overlapping tiles.

Rules for objects of one class:

1. *Parts are joined.* Two objects of neighboring tiles that are cut by the tiles' facing borders are one object if
  their parts in the overlap of the tiles have an IoU of at least ``JOIN_IOU``. The joined box encloses both, the score
  is the maximum. Several parts are joined in chains.
2. *Duplicates are removed.* Complete objects (not cut, or every cut joined) are processed first, by score; then cut
  ones, the largest first, since the score of a part is unreliable. An object is removed if a previous one from another
  tile has an IoU above the detector's threshold with it, or if it is cut and the previous one covers ``COVERED`` of its
  area.

Objects of the same tile are not compared, since the detector has done so.

Shapes: N objects. Boxes are (x1, y1, x2, y2) in pixels of the whole image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_area, box_iou

JOIN_IOU = 0.5
COVERED = 0.5
CUT_MARGIN = 0.02
"""Tolerance for an object to be cut by a border, relative to the tile's side."""

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class TileObjects:
    """Detections of all tiles.

    Attributes:
        boxes_N4: float64.
        labels_N: int64.
        scores_N: float64.
        tiles_N2: int64, row and column of the tile.
        seen_N4: float64, rectangle of the tile.
        cut_N4: bool, whether the object is cut by the left, top, right, bottom border of the tile inside the image.
    """

    boxes_N4: Boxes
    labels_N: NDArray[np.int64]
    scores_N: Boxes
    tiles_N2: NDArray[np.int64]
    seen_N4: Boxes
    cut_N4: NDArray[np.bool_]


@dataclass(frozen=True)
class MergedObject:
    """An object of the whole image.

    Attributes:
        parts: Indices of the joined detections; usually one.
        box_4: float64.
        label: Class index.
        score: Maximum score of its parts.
    """

    parts: tuple[int, ...]
    box_4: Boxes
    label: int
    score: float


def cut_sides(boxes_N4: Boxes, seen_4: Boxes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether each side of the boxes is at a border of their tile that is inside the image (height and width)."""
    margin_4 = CUT_MARGIN * np.tile(seen_4[2:] - seen_4[:2], 2)
    inside_4 = seen_4 != np.array([0, 0, size[1], size[0]])
    return (np.abs(boxes_N4 - seen_4) <= margin_4) & inside_4


def merge_tiles(found: TileObjects, iou_threshold: float) -> list[MergedObject]:
    """The objects of the whole image, sorted by score; see the rules at the top of this file.

    Args:
        found: Objects of all tiles.
        iou_threshold: The detector's threshold of non-maximum suppression.
    """
    groups, open_N = _join(found)
    boxes_M4 = np.array(
        [[*found.boxes_N4[group, :2].min(0), *found.boxes_N4[group, 2:].max(0)] for group in groups]
    ).reshape(-1, 4)
    scores_M = np.array([found.scores_N[group].max() for group in groups])
    cut_M = np.array([open_N[group].any() for group in groups], dtype=bool)
    order = np.lexsort((np.where(cut_M, -_area(boxes_M4), -scores_M), cut_M))
    kept: list[MergedObject] = []
    by_cell: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    cell_2 = (found.seen_N4[:, 2:] - found.seen_N4[:, :2]).max(0) if len(found.seen_N4) else np.ones(2)
    for index in order.tolist():
        group, box_4, label = groups[index], boxes_M4[index], int(found.labels_N[groups[index][0]])
        cells = _cells(box_4, cell_2, label)
        near = sorted({other for cell in cells for other in by_cell[cell]})
        others = [other for other in near if _from_other_tiles(found, group, groups[other])]
        if not _is_duplicate(box_4, bool(cut_M[index]), boxes_M4[others], iou_threshold):
            kept.append(MergedObject(tuple(group), box_4, label, float(scores_M[index])))
            for cell in cells:
                by_cell[cell].append(index)
    return sorted(kept, key=lambda each: -each.score)


def _join(found: TileObjects) -> tuple[list[list[int]], NDArray[np.bool_]]:
    """Groups of joined objects, and whether each object (N,) has a cut that was not joined."""
    open_N4 = found.cut_N4.copy()
    by_tile: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, (row, column) in enumerate(found.tiles_N2.tolist()):
        by_tile[row, column].append(index)
    parent = list(range(len(found.labels_N)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for (row, column), here in by_tile.items():
        for there, end, start in ((by_tile.get((row, column + 1)), 2, 0), (by_tile.get((row + 1, column)), 3, 1)):
            for first, second in _matching_parts(found, here, there or [], end, start):
                parent[root(second)] = root(first)
                open_N4[first, end] = open_N4[second, start] = False
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(parent)):
        groups[root(index)].append(index)
    return list(groups.values()), np.asarray(open_N4.any(1))


def _matching_parts(
    found: TileObjects, here: Sequence[int], there: Sequence[int], end: int, start: int
) -> list[tuple[int, int]]:
    """Pairs of objects of one class to be joined, each object at most once."""
    first = [index for index in here if found.cut_N4[index, end]]
    second = [index for index in there if found.cut_N4[index, start]]
    if not first or not second:
        return []
    a_4, b_4 = found.seen_N4[first[0]], found.seen_N4[second[0]]
    low_2, high_2 = np.maximum(a_4[:2], b_4[:2]), np.minimum(a_4[2:], b_4[2:])
    iou_NM = _iou(_clip(found.boxes_N4[first], low_2, high_2), _clip(found.boxes_N4[second], low_2, high_2))
    iou_NM[found.labels_N[first][:, None] != found.labels_N[second]] = 0
    pairs = []
    while iou_NM.max() >= JOIN_IOU:
        i, j = np.unravel_index(int(iou_NM.argmax()), iou_NM.shape)
        pairs.append((first[i], second[j]))
        iou_NM[i], iou_NM[:, j] = 0, 0
    return pairs


def _is_duplicate(box_4: Boxes, cut: bool, others_N4: Boxes, iou_threshold: float) -> bool:
    if not len(others_N4):
        return False
    if (_iou(box_4[None], others_N4) > iou_threshold).any():
        return True
    return cut and bool((_area(_clip(others_N4, box_4[:2], box_4[2:])) >= COVERED * _area(box_4[None])).any())


def _from_other_tiles(found: TileObjects, group: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two groups are not from a single tile."""
    tiles = {tuple(tile) for tile in found.tiles_N2[[*group, *other]].tolist()}
    return len(tiles) > 1


def _cells(box_4: Boxes, cell_2: Boxes, label: int) -> list[tuple[int, int, int]]:
    """Cells of a coarse grid that a box touches; only objects that share a cell can overlap."""
    left, top = (box_4[:2] // cell_2).astype(int).tolist()
    right, bottom = (box_4[2:] // cell_2).astype(int).tolist()
    return [(label, x, y) for y in range(top, bottom + 1) for x in range(left, right + 1)]


def _iou(first_N4: Boxes, second_M4: Boxes) -> Boxes:
    """Pairwise intersection over union, (N, M); 0 for empty boxes."""
    return box_iou(torch.from_numpy(first_N4), torch.from_numpy(second_M4)).nan_to_num_(0.0).numpy()


def _area(boxes_N4: Boxes) -> Boxes:
    return box_area(torch.from_numpy(boxes_N4)).numpy()


def _clip(boxes_N4: Boxes, low_2: Boxes, high_2: Boxes) -> Boxes:
    return np.concatenate([boxes_N4[:, :2].clip(low_2, high_2), boxes_N4[:, 2:].clip(low_2, high_2)], 1)
