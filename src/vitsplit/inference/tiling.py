"""Tiles that cover an image, and the blending of what was predicted in them.

Every pixel's value is an average over the tiles that see it, with weights that fall to zero towards a tile's cut
borders and sum to one. Values are held only where a further tile will still add to them.

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
        starts: Where the tiles begin, in pixels.
        tile: Their length.
        weights: One (tile,) float32 per tile; at every pixel of the image the weights of its tiles sum to one.
        length: Of the image's side.
    """

    starts: tuple[int, ...]
    tile: int
    weights: tuple[Tensor, ...]
    length: int

    def finished(self, index: int) -> int:
        """Pixels of a tile, from its start on, that no later tile will see."""
        following = self.starts[index + 1] if index + 1 < len(self.starts) else self.length
        return following - self.starts[index]


@dataclass(frozen=True)
class Grid:
    """The tiles of an image: every pair of a row's and a column's tile."""

    rows: Axis
    columns: Axis

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of every tile."""
        return self.rows.tile, self.columns.tile

    def __len__(self) -> int:
        return len(self.rows.starts) * len(self.columns.starts)


def plan_grid(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> Grid:
    """Tiles that cover an image, all of one size and evenly spread.

    Args:
        size: Height and width of the image.
        tile: Height and width of a tile; a shorter side of the image is one tile of its own length.
        overlap: The least number of pixels that two neighbours share, down and across.

    Raises:
        ConfigError: A tile has no pixel, or the overlap is negative or above half a tile.
    """
    if min(tile) < 1:
        raise ConfigError(f"--tile {tile[0]} {tile[1]}: both must be at least 1 pixel.")
    check_overlap(tile, overlap)
    return Grid(plan_axis(size[0], tile[0], overlap), plan_axis(size[1], tile[1], overlap))


def check_overlap(tile: tuple[int, int], overlap: int) -> None:
    """Raises a ConfigError if tiles of a size (height and width in pixels) cannot overlap by so many pixels."""
    if not 0 <= 2 * overlap <= min(tile):
        raise ConfigError(f"--overlap {overlap}: must lie between 0 and half a tile of {tile[0]}x{tile[1]} pixels.")


def plan_axis(length: int, tile: int, overlap: int) -> Axis:
    """The tiles along a side; weights are raised cosines over ``overlap`` pixels, normalised.

    The borders of the image are not cuts: there a tile weighs one.
    """
    tile = min(tile, length)
    overlap = min(overlap, tile // 2)
    count = 1 if tile == length else math.ceil((length - overlap) / (tile - overlap))
    starts = tuple(round(index * (length - tile) / max(1, count - 1)) for index in range(count))
    # Half a pixel in, so that a pixel at a cut has some weight; without an overlap every pixel weighs one.
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
    """Averages the values of tiles that come row by row, each row from left to right.

    Between two tiles only the strips are held that a further tile overlaps: one below the row of tiles, as wide as the
    image, and one beside the tile. Their size depends on the image's width and the overlap, not on its height.

    Args:
        grid: The tiles.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._below_ChW: Tensor | None = None
        """Sums in the rows that this row of tiles shares with the one above it (right of the tile), or below it."""
        self._below_rows = 0
        self._beside_CHw: Tensor | None = None

    def held_bytes(self) -> int:
        """Bytes of the sums that are kept for tiles to come."""
        held = [part for part in (self._below_ChW, self._beside_CHw) if part is not None]
        return sum(part.numel() * part.element_size() for part in held)

    def add(self, row: int, column: int, values_CHW: Tensor) -> Tensor:
        """Adds a tile and returns what is finished by it.

        Args:
            row: Of the tile in the grid.
            column: The same.
            values_CHW: float32, of the tile's size.

        Returns:
            Averages ``(C, h, w)`` of the pixels, from the tile's start on, that no later tile will see.
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
            assert self._below_ChW is not None, "tiles come row by row"
            sums_CHW[:, :above, :width] += self._below_ChW[:, :above, left : left + width]
        if len(rows.starts) > 1:
            if self._below_ChW is None:
                most = max(rows.tile - rows.finished(index) for index in range(len(rows.starts) - 1))
                self._below_ChW = sums_CHW.new_zeros(sums_CHW.shape[0], most, columns.length)
            self._below_ChW[:, : rows.tile - height, left : left + width] = sums_CHW[:, height:, :width]
        return sums_CHW[:, :height, :width]
