"""Tiles and their blending, against sums over the whole image at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitsplit.errors import ConfigError
from vitsplit.inference.tiling import Blender, Grid, plan_axis, plan_grid

LAYOUTS = [
    (length, tile, overlap)
    for length in (1, 5, 12, 13, 17, 24, 25, 40, 101)
    for tile in (1, 5, 12, 24)
    for overlap in (0, 1, 2, 6)
    if 2 * overlap <= tile
]


@pytest.mark.parametrize(("length", "tile", "overlap"), LAYOUTS)
def test_tiles_cover_the_side_and_weights_sum_to_one(length, tile, overlap):
    axis = plan_axis(length, tile, overlap)
    assert axis.tile == min(tile, length)
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.tile == length
    for before, after in zip(axis.starts, axis.starts[1:], strict=False):
        assert before < after and before + axis.tile - after >= overlap
    total = np.zeros(length)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert (weight >= 0).all()
        total[start : start + axis.tile] += weight.numpy()
    assert np.allclose(total, 1, atol=1e-6)


def test_the_number_of_tiles_is_minimal():
    # Each tile after the first adds at most tile - overlap pixels.
    for length, tile, overlap in LAYOUTS:
        count = len(plan_axis(length, tile, overlap).starts)
        needed = 1 if length <= tile else 1 + math.ceil((length - tile) / (tile - overlap))
        assert count == needed


def test_weights_are_raised_cosines_where_tiles_fit_exactly():
    first, second = plan_axis(20, 12, 4).weights
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    assert np.allclose(first, [*np.ones(8), *(1 - ramp)], atol=1e-6)
    assert np.allclose(second, [*ramp, *np.ones(8)], atol=1e-6)


def blend(grid: Grid, tiles: dict[tuple[int, int], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """All tiles through a blender, and the most bytes that it held."""
    blender, most = Blender(grid), 0
    channels = next(iter(tiles.values())).shape[0]
    out_CHW = torch.full((channels, grid.rows.length, grid.columns.length), torch.nan)
    for row, top in enumerate(grid.rows.starts):
        for column, left in enumerate(grid.columns.starts):
            block_Chw = blender.add(row, column, tiles[row, column])
            target_Chw = out_CHW[:, top : top + block_Chw.shape[1], left : left + block_Chw.shape[2]]
            assert target_Chw.isnan().all(), "a pixel is finished once"
            target_Chw.copy_(block_Chw)
            most = max(most, blender.held_bytes())
    return out_CHW, most


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (50, 7), (24, 24), (25, 26), (61, 83), (30, 100)])
@pytest.mark.parametrize(("tile", "overlap"), [((12, 16), 0), ((12, 16), 3), ((24, 20), 10), ((12, 12), 6)])
def test_blending_is_the_weighted_average_over_all_tiles(size, tile, overlap):
    grid = plan_grid(size, tile, overlap)
    generator = torch.Generator().manual_seed(0)
    tiles, total_CHW, weight_HW = {}, torch.zeros(3, *size), torch.zeros(size)
    for row, top in enumerate(grid.rows.starts):
        for column, left in enumerate(grid.columns.starts):
            values_CHW = torch.randn(3, *grid.tile, generator=generator)
            tiles[row, column] = values_CHW
            share_HW = torch.outer(grid.rows.weights[row], grid.columns.weights[column])
            area = (..., slice(top, top + grid.tile[0]), slice(left, left + grid.tile[1]))
            total_CHW[area] += values_CHW * share_HW
            weight_HW[area] += share_HW
    blended_CHW, _ = blend(grid, tiles)
    assert torch.allclose(weight_HW, torch.ones(size), atol=1e-5)
    assert torch.allclose(blended_CHW, total_CHW, atol=1e-5)


def constant_tiles(grid: Grid, values_CHW: torch.Tensor) -> dict[tuple[int, int], torch.Tensor]:
    return {(r, c): values_CHW for r in range(len(grid.rows.starts)) for c in range(len(grid.columns.starts))}


def test_memory_does_not_grow_with_the_height():
    channels, width, tile, overlap = 5, 300, (24, 32), 6
    held = []
    for height in (96, 960):
        grid = plan_grid((height, width), tile, overlap)
        held.append(blend(grid, constant_tiles(grid, torch.ones(channels, *grid.tile)))[1])
        shared = max(grid.rows.tile - grid.rows.finished(row) for row in range(len(grid.rows.starts) - 1))
        beside = max(grid.columns.tile - grid.columns.finished(c) for c in range(len(grid.columns.starts)))
        assert held[-1] <= 4 * channels * (shared * width + beside * tile[0])
    whole = 4 * channels * 960 * width
    assert held[1] <= 1.2 * held[0] and held[1] < whole / 50


def test_position_dependent_errors_leave_no_seam():
    # A ramp from 0 to 1 across every tile: side by side, neighbors would jump by 1 where they meet.
    height, width, overlap = 24, 32, 8
    grid = plan_grid((24 * 4 - 8 * 3, 32 * 4 - 8 * 3), (height, width), overlap)
    ramp_HW = (torch.arange(width) / (width - 1) + torch.zeros(height, 1))[None]
    blended_HW = blend(grid, constant_tiles(grid, ramp_HW))[0][0]
    steps = blended_HW.diff(dim=1).abs().max().item()
    # Two ramps that differ by d = (width - overlap) / (width - 1) are mixed by a raised cosine, whose steepest step is
    # pi / (2 overlap).
    difference = (width - overlap) / (width - 1)
    assert steps <= difference * math.pi / (2 * overlap) + 1 / (width - 1)
    assert steps < difference / 4


@pytest.mark.parametrize("tile", [(0, 12), (12, -1)])
def test_an_empty_tile_is_rejected(tile):
    with pytest.raises(ConfigError, match=r"--tile .* at least 1 pixel"):
        plan_grid((50, 50), tile, 0)


@pytest.mark.parametrize("overlap", [-1, 7])
def test_an_invalid_overlap_is_rejected(overlap):
    with pytest.raises(ConfigError, match=rf"--overlap {overlap}: .*half a tile of 12x16"):
        plan_grid((50, 50), (12, 16), overlap)
