"""Bilinear sampling as embedding bags, for deformable convolution and deformable attention.

A sampled value is a weighted sum of four neighboring pixels, and a pixel with channels innermost is one row of memory:
so sampling is one embedding bag, ``F.embedding_bag(index, rows, per_sample_weights=share, mode="sum")``. On a CPU that
is three to four times as fast as ``grid_sample``, forward and backward together.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bilinear_neighbors(
    x: Tensor, y: Tensor, width: Tensor, height: Tensor, *, first: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The four pixels around each position of a map, and how much each counts.

    A neighbor beyond the border has a valid index and the share zero.

    Args:
        x: Positions in pixels, of any shape; whole numbers are the middles of pixels. At least float32: bfloat16
            cannot tell pixels apart beyond 256.
        y: The same, downwards.
        width: Pixels in a row of the map, int32; broadcast against the positions.
        height: Rows of the map, likewise.
        first: Index of the map's first pixel, likewise.
        weight: Of each position; None: one.

    Returns:
        Index ``first + y * width + x`` (int32) and share of each neighbor: the shape of the positions, and 4.
    """
    left, top = x.detach().floor(), y.detach().floor()
    right_share, low_share = x - left, y - top
    # One row and column beyond the border is enough to stand for all that lies further out, and keeps integers small.
    left = left.clamp(min=-2).minimum(width).int()
    top = top.clamp(min=-2).minimum(height).int()
    indices, shares = [], []
    for row, row_share in ((top, 1 - low_share), (top + 1, low_share)):
        leftmost = first + row.clamp(min=0).minimum(height - 1) * width
        is_row = (row >= 0) & (row < height)
        weighted = row_share if weight is None else row_share * weight
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            inside = is_row & (column >= 0) & (column < width)
            indices.append(leftmost + column.clamp(min=0).minimum(width - 1))
            shares.append(weighted * column_share * inside)
    return torch.stack(indices, dim=-1), torch.stack(shares, dim=-1)
