"""Adaptive average pooling as a matrix product, for exporters: ONNX has no adaptive pooling of a free size.

Shapes: B batch, D width, h w patch grid, n bins of a side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pool_by_matrix(map_BDhw: Tensor, bins: tuple[int, int]) -> Tensor:
    """``F.adaptive_avg_pool2d``.

    Args:
        map_BDhw: The map.
        bins: Number of rows and columns of the result.
    """
    height, width = map_BDhw.shape[2:]
    rows, columns = bins
    return bin_weights(height, rows) @ map_BDhw @ bin_weights(width, columns).mT


def bin_weights(side: int, bins: int) -> Tensor:
    """Weights of adaptive average pooling of a side, (bins, side) float32: bin i is the mean from ``floor(i side / n)``
    to before ``ceil((i + 1) side / n)``.
    """
    position, index_n1 = torch.arange(side), torch.arange(bins)[:, None]
    first_n1 = index_n1 * side // bins
    end_n1 = ((index_n1 + 1) * side + bins - 1) // bins
    inside_nh = ((position >= first_n1) & (position < end_n1)).float()
    return inside_nh / inside_nh.sum(1, keepdim=True)
