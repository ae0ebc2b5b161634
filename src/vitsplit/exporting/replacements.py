"""Layers in a form that an exporter can follow, with the weights of the original.

Shapes: B batch, D width, C channels, h w patch grid, L layers, J = K_p columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitsplit.nn.bins import pool_by_matrix
from vitsplit.nn.upernet import POOL_SIZES, PyramidPooling, resize


class FixedMix(nn.Module):
    """A trained gate: ``mixed_j = sum_l weights[l][j] * map_l`` over the layers that it keeps.

    Args:
        weights_LJ: ``SparseGate.weights``.
        layers: ``SparseGate.used_layers``.
    """

    def __init__(self, weights_LJ: Tensor, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = layers
        self.weights_LJ = weights_LJ.tolist()

    def forward(self, maps: Mapping[int, Tensor]) -> list[Tensor]:
        """Maps by layer index, (B, D, h, w), to K_p maps."""
        mixed = []
        for column in range(len(self.weights_LJ[0])):
            shares = {layer: self.weights_LJ[layer][column] for layer in self.layers}
            mixed.append(sum((maps[layer] * share for layer, share in shares.items() if share), torch.zeros(())))
        return mixed


class MatrixPooling(nn.Module):
    """``PyramidPooling`` whose averages are matrix products, since ONNX has no adaptive pooling of a free size.

    Args:
        pooling: The layer.
    """

    def __init__(self, pooling: PyramidPooling) -> None:
        super().__init__()
        self.reduce, self.mix = pooling.reduce, pooling.mix

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w)`` to ``(B, C, h, w)``."""
        pooled = []
        for reduce, bins in zip(self.reduce, POOL_SIZES, strict=True):
            pooled.append(resize(reduce(pool_by_matrix(map_BDhw, (bins, bins))), map_BDhw))
        return self.mix(torch.cat([map_BDhw, *pooled], dim=1))
