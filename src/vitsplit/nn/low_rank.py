"""Low-rank updates of a linear layer (Hu et al. 2022)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """``W x + b + alpha / r * B A x``: a linear layer whose weight stays frozen, and a trainable update of rank r.

    As in LoRA, A has the default initialization of ``nn.Linear``, and B is zero, so the initial layer equals the given
    one.

    Args:
        layer: The linear layer; its parameters are frozen.
        rank: r.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Dropout of the update's input.
    """

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        # float32, whatever the precision of the frozen weight.
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False, device=layer.weight.device)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False, device=layer.weight.device)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        update: Tensor = self.lora_B(self.lora_A(self.dropout(x))) * self.scale
        return self.base_layer(x) + update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that computes the same, without dropout. It shares the bias of this one."""
        base = self.base_layer
        layer = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(base.weight + self.scale * (self.lora_B.weight @ self.lora_A.weight))
        layer.bias = base.bias
        return layer
