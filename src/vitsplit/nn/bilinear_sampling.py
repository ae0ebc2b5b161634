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
    """Indices and bilinear weights of the four pixels around each position of a map.

    A neighbor outside the map has a valid index and weight zero.

    Args:
        x: Positions in pixels, of any shape; integers are pixel centers. At least float32, since bfloat16 cannot
            represent pixel positions beyond 256.
        y: Likewise, downwards.
        width: Width of the map, int32; broadcast against the positions.
        height: Height of the map, likewise.
        first: Index of the map's first pixel, likewise.
        weight: Weight of each position; None: one.

    Returns:
        Index ``first + y * width + x`` (int32) and weight of each neighbor, of the positions' shape and 4.
    """
    left, top = x.detach().floor(), y.detach().floor()
    right_share, low_share = x - left, y - top
    # Positions further out are clamped to one row and column outside the map, which keeps integers small.
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
