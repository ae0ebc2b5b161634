"""Merging objects across tiles, against hand-made cases and against scenes whose objects are known."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as official

from vitsplit.inference.across_tiles import TileObjects, cut_sides, merge_tiles
from vitsplit.inference.detection_answer import CropMask
from vitsplit.inference.tiling import Grid, plan_grid

SIZE, TILE, OVERLAP = (300, 400), (100, 120), 30


def objects(*rows):
    """Objects from (box, label, score, tile); the tiles are those of the grid."""
    grid = plan_grid(SIZE, TILE, OVERLAP)
    boxes = np.array([row[0] for row in rows], dtype=float).reshape(-1, 4)
    tiles = np.array([row[3] for row in rows], dtype=int).reshape(-1, 2)
    seen = np.array([rectangle(grid, *tile) for tile in tiles.tolist()], dtype=float).reshape(-1, 4)
    cut = np.array([cut_sides(box[None], area, SIZE)[0] for box, area in zip(boxes, seen, strict=True)], dtype=bool)
    labels, scores = (np.array([row[index] for row in rows]) for index in (1, 2))
    return TileObjects(boxes, labels.astype(int), scores.astype(float), tiles, seen, cut.reshape(-1, 4))


def rectangle(grid: Grid, row: int, column: int) -> list[int]:
    top, left = grid.rows.starts[row], grid.columns.starts[column]
    return [left, top, left + grid.tile[1], top + grid.tile[0]]


def test_grid_of_tiles():
    grid = plan_grid(SIZE, TILE, OVERLAP)
    assert grid.rows.starts == (0, 67, 133, 200) and grid.columns.starts == (0, 70, 140, 210, 280)


def test_cuts_are_only_inside_the_image():
    boxes = np.array([[0, 0, 50, 50], [10, 10, 119, 50], [10, 10, 110, 99], [30, 30, 60, 60]], dtype=float)
    assert cut_sides(boxes, np.array([0.0, 0, 120, 100]), SIZE).tolist() == [
        [False, False, False, False],
        [False, False, True, False],
        [False, False, False, True],
        [False, False, False, False],
    ]
    last = np.array([280.0, 200, 400, 300])
    assert cut_sides(np.array([[281.0, 210, 400, 300]]), last, SIZE).tolist() == [[True, False, False, False]]


def test_a_complete_object_replaces_its_part_in_another_tile():
    # Complete in the second tile; the first tile has its left third with a higher score.
    merged = merge_tiles(objects(([100, 20, 120, 60], 0, 0.9, (0, 0)), ([100, 20, 160, 60], 0, 0.6, (0, 1))), 0.5)
    assert [each.parts for each in merged] == [(1,)]
    assert merged[0].score == 0.6


def test_complete_duplicates_are_removed():
    merged = merge_tiles(objects(([80, 20, 112, 60], 0, 0.7, (0, 0)), ([81, 20, 112, 61], 0, 0.8, (0, 1))), 0.5)
    assert [each.parts for each in merged] == [(1,)]


def test_two_parts_are_joined():
    # From x = 40 to 180: neither tile (0..120, 70..190) has it whole, and both end at their cuts.
    found = objects(([40, 20, 120, 60], 0, 0.7, (0, 0)), ([70, 21, 180, 61], 0, 0.8, (0, 1)))
    merged = merge_tiles(found, 0.5)
    assert [each.parts for each in merged] == [(0, 1)]
    assert merged[0].box_4.tolist() == [40, 20, 180, 61] and merged[0].score == 0.8


def test_a_chain_of_parts_is_one_object():
    parts = [([10, 20, 120, 60], (0, 0)), ([70, 20, 190, 60], (0, 1)), ([140, 20, 230, 60], (0, 2))]
    merged = merge_tiles(objects(*((box, 0, 0.5, tile) for box, tile in parts)), 0.5)
    assert [each.parts for each in merged] == [(0, 1, 2)]
    assert merged[0].box_4.tolist() == [10, 20, 230, 60]


def test_objects_of_different_classes_are_not_merged():
    found = objects(([40, 20, 120, 60], 0, 0.7, (0, 0)), ([70, 20, 180, 60], 1, 0.8, (0, 1)))
    assert sorted(each.parts for each in merge_tiles(found, 0.5)) == [(0,), (1,)]


def test_objects_that_differ_in_the_overlap_are_not_merged():
    # Both are cut, one above the other.
    found = objects(([40, 10, 120, 40], 0, 0.7, (0, 0)), ([70, 50, 180, 90], 0, 0.8, (0, 1)))
    assert sorted(each.parts for each in merge_tiles(found, 0.5)) == [(0,), (1,)]


def test_objects_of_one_tile_are_not_merged():
    found = objects(([20, 20, 80, 80], 0, 0.9, (0, 0)), ([21, 20, 80, 80], 0, 0.8, (0, 0)))
    assert [each.parts for each in merge_tiles(found, 0.5)] == [(0,), (1,)]


def test_no_objects():
    assert merge_tiles(objects(), 0.5) == []


def scene(seed):
    """Separate boxes of two classes, some of them longer than a tile."""
    rng = np.random.default_rng(seed)
    boxes, labels = [], []
    while len(boxes) < 12:
        height, width = rng.integers(8, 60), rng.integers(8, 250)
        top, left = rng.integers(0, SIZE[0] - height), rng.integers(0, SIZE[1] - width)
        box = np.array([left, top, left + width, top + height], dtype=float)
        if not any(overlap(grown(box), grown(other)) for other in boxes):
            boxes.append(box)
            labels.append(int(rng.integers(2)))
    return boxes, labels


def grown(box):
    return box + np.array([-3, -3, 3, 3])


def overlap(first, second):
    return bool((np.minimum(first[2:], second[2:]) > np.maximum(first[:2], second[:2])).all())


@pytest.mark.parametrize("seed", range(20))
def test_a_perfect_detector_in_tiles_finds_the_scene(seed):
    boxes, labels = scene(seed)
    grid = plan_grid(SIZE, TILE, OVERLAP)
    rng = np.random.default_rng(seed)
    rows = []
    for row in range(len(grid.rows.starts)):
        for column in range(len(grid.columns.starts)):
            area = np.array(rectangle(grid, row, column), dtype=float)
            for box, label in zip(boxes, labels, strict=True):
                part = np.concatenate([np.maximum(box[:2], area[:2]), np.minimum(box[2:], area[2:])])
                # Like a detector, it does not find slivers.
                if (part[2:] - part[:2]).min() >= 6:
                    rows.append((part, label, rng.uniform(0.3, 1), (row, column)))
    merged = merge_tiles(objects(*rows), 0.5)
    found = sorted((each.label, *each.box_4.round().tolist()) for each in merged)
    assert found == sorted((label, *box.tolist()) for box, label in zip(boxes, labels, strict=True))


def test_run_lengths_in_the_whole_image_equal_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(5, 60, 2))
        rows, columns = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
        whole_HW = np.zeros((height, width), dtype=bool)
        whole_HW[top : top + rows, left : left + columns] = rng.random((rows, columns)) < rng.choice([0, 0.4, 0.9, 1])
        mask = CropMask(whole_HW[top : top + rows, left : left + columns], left, top)
        rle = mask.rle((height, width))
        assert rle["size"] == [height, width]
        assert np.array_equal(official.decode(rle), whole_HW)


def test_the_mask_of_a_joined_object_is_the_union():
    whole_HW = np.random.default_rng(0).random((30, 40)) < 0.5
    parts = [CropMask(whole_HW[2:20, 3:25], 3, 2), CropMask(whole_HW[10:30, 14:40], 14, 10)]
    expected_HW = np.zeros_like(whole_HW)
    expected_HW[2:20, 3:25] = whole_HW[2:20, 3:25]
    expected_HW[10:30, 14:40] |= whole_HW[10:30, 14:40]
    assert np.array_equal(official.decode(CropMask.union(parts).rle((30, 40))), expected_HW)
