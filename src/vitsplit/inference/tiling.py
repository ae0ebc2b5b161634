"""Tiling of large images, and blending of predictions of overlapping tiles.

The value of a pixel is a weighted average over its tiles; weights decrease towards inner borders of tiles and sum to
one. Only sums of unfinished pixels are stored.

Shapes: C channels, H W pixels of a tile, h w of a finished block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsplit.errors import ConfigError


@dataclass(frozen=True)
class Axis:
    """The tiles along one side of an image.

    Attributes:
        starts: Start of each tile in pixels.
        tile: Length of a tile.
        weights: One (tile,) float32 per tile; the weights of all tiles sum to one at every pixel.
        length: Length of the image's side.
    """

    starts: tuple[int, ...]
    tile: int
    weights: tuple[Tensor, ...]
    length: int

    def finished(self, index: int) -> int:
        """Number of pixels from the start of a tile that no later tile overlaps."""
        following = self.starts[index + 1] if index + 1 < len(self.starts) else self.length
        return following - self.starts[index]


@dataclass(frozen=True)
class Grid:
    """The tiles of an image: the product of row and column tiles."""

    rows: Axis
    columns: Axis

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of every tile."""
        return self.rows.tile, self.columns.tile

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)


def plan_grid(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Grid:
    """Plans tiles of one size, evenly distributed over an image.

    Args:
        size: Height and width of the image.
        tile: Height and width of a tile; reduced to the image's size if larger.
        overlap: Minimum overlap of neighboring tiles in pixels.

    Raises:
        ConfigError: A side of the tile is below 1, or the overlap is negative or more than half a tile.
    """
    if min(tile) < 1:
        raise ConfigError(f"--tile {tile[0]} {tile[1]}: both must be at least 1 pixel.")
    check_overlap(tile, overlap)
    return Grid(plan_axis(size[0], tile[0], overlap), plan_axis(size[1], tile[1], overlap))


def check_overlap(tile: tuple[int, int], overlap: int) -> None:
    """Raises ConfigError if the overlap is negative or more than half a tile."""
    if not 0 <= 2 * overlap <= min(tile):
        raise ConfigError(f"--overlap {overlap}: must be between 0 and half a tile of {tile[0]}x{tile[1]} pixels.")


def plan_axis(length: int, tile: int, overlap: int) -> Axis:
    """Plans the tiles along one side, with raised-cosine weights over ``overlap`` pixels.

    Weights are one at the borders of the image.
    """
    tile = min(tile, length)
    overlap = min(overlap, tile // 2)
    count = 1 if tile == length else math.ceil((length - overlap) / (tile - overlap))
    starts = tuple(round(index * (length - tile) / max(1, count - 1)) for index in range(count))
    # At pixel centers, so that weights are positive; without overlap all weights are one.
    ramp = torch.sin((torch.arange(tile, dtype=torch.float64) + 0.5).div(max(overlap, 0.5)).clamp_max(1) * math.pi / 2)
    raw = []
    for start in starts:
        weight = torch.ones(tile, dtype=torch.float64)
        if start > 0:
            weight = torch.minimum(weight, ramp.square())
        if start + tile < length:
            weight = torch.minimum(weight, ramp.square().flip(0))
        raw.append(weight)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(starts, raw, strict=True):
        total[start : start + tile] += weight
    weights = tuple((weight / total[start : start + tile]).float() for start, weight in zip(starts, raw, strict=True))
    return Axis(starts, tile, weights, length)


class Blender:
    """Blends tiles that are added in row-major order.

    Only sums in strips that later tiles overlap are stored: one below the row of tiles and one right of the tile.
    Their size is independent of the image's height.

    Args:
        grid: The tiles.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._below_ChW: Tensor | None = None
        """Sums of rows shared with the row of tiles above (right of the current tile), or below."""
        self._below_rows = 0
        self._beside_CHw: Tensor | None = None

    def held_bytes(self) -> int:
        """Bytes of the stored sums."""
        held = [part for part in (self._below_ChW, self._beside_CHw) if part is not None]
        return sum(part.numel() * part.element_size() for part in held)

    def add(self, row: int, column: int, values_CHW: Tensor) -> Tensor:
        """Adds a tile and returns the pixels finished by it.

        Args:
            row: Row of the tile in the grid.
            column: Column of the tile in the grid.
            values_CHW: float32, of the tile's size.

        Returns:
            Averages ``(C, h, w)`` of the pixels from the start of the tile that no later tile overlaps.
        """
        rows, columns = self.grid.rows, self.grid.columns
        device = values_CHW.device
        weight_HW = rows.weights[row][:, None] * columns.weights[column]
        sums_CHW = values_CHW * weight_HW.to(device)
        if column > 0 and self._beside_CHw is not None:
            sums_CHW[..., : self._beside_CHw.shape[-1]] += self._beside_CHw
        height, width = rows.finished(row), columns.finished(column)
        self._beside_CHw = sums_CHW[..., width:].clone()
        left = columns.starts[column]
        if row > 0:
            above = rows.starts[row - 1] + rows.tile - rows.starts[row]
            assert self._below_ChW is not None, "tiles must be added in row-major order"
            sums_CHW[:, :above, :width] += self._below_ChW[:, :above, left : left + width]
        if len(rows.starts) > 1:
            if self._below_ChW is None:
                most = max(rows.tile - rows.finished(index) for index in range(len(rows.starts) - 1))
                self._below_ChW = sums_CHW.new_zeros(sums_CHW.shape[0], most, columns.length)
            self._below_ChW[:, : rows.tile - height, left : left + width] = sums_CHW[:, height:, :width]
        return sums_CHW[:, :height, :width]
