"""The paper's "linear" segmentation head: two transposed convolutions to a quarter of the patch size, norm, classifier.

Shapes: B batch, D width, h w patch grid, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.nn.activation_checkpointing import recomputed
from vitsplit.nn.pointwise import Doubling, Pointwise

GROUPS = 32


class SegmentationDecoder(nn.Module):
    """(ConvT 2x2 -> GN -> GELU) twice -> BN -> [Dropout2d] -> Conv1x1: (B, D, h, w) to (B, K, 4h, 4w).

    ``8 D^2 + 8 D + K D + K`` parameters, 1.24 / 4.84 / 8.55 M for S / B / L and 150 classes (Table 6's first row).

    Args:
        width: D, a multiple of 32.
        num_classes: K.
        last_norm: ``batch``, or ``group`` which needs no batch statistics.
        dropout: Probability of dropping a whole channel before the classifier.
        smooth_upsampling: Filter the output of the transposed convolutions (see ``vitsplit.nn.pointwise.smooth``).
    """

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        last_norm: Literal["batch", "group"] = "batch",
        dropout: float = 0.0,
        smooth_upsampling: bool = False,
    ) -> None:
        super().__init__()
        self.up1 = Doubling(width, width, smoothed=smooth_upsampling)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.up2 = Doubling(width, width, smoothed=smooth_upsampling)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.last_norm: nn.Module = nn.BatchNorm2d(width) if last_norm == "batch" else nn.GroupNorm(GROUPS, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Pointwise(width, num_classes)

    def forward(self, fused_BDhw: Tensor) -> Tensor:
        """``fused_BDhw`` to logits (B, K, 4h, 4w)."""
        x = F.gelu(self.norm1(self.up1(fused_BDhw)))
        # Sixteen times the size of the input map: recomputed instead of stored.
        x = recomputed(lambda x: F.gelu(self.norm2(x)), self.up2(x))
        return self.classify(self.dropout(self.last_norm(x)))
