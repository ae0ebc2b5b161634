"""The two-layer convolutional block of Fig. 6, which the prior head and the fusion net share.

Shapes: B batch, C channels in, D width, h w patch grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.nn.deformable_convolution import DeformConv3x3, OffsetInit
from vitsplit.nn.pointwise import Pointwise


class ConvBlock(nn.Module):
    """1x1 convolution -> GELU -> 3x3 (deformable) convolution -> GELU, without any norm, as in the release.

    Args:
        in_channels: C.
        width: D.
        deformable: Deformable 3x3 convolution; otherwise a plain one.
        offset_init: See ``DeformConv3x3``.
        plain_bias: Whether a plain 3x3 convolution has a bias. A deformable one never has one.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        deformable: bool = True,
        offset_init: OffsetInit = "default",
        plain_bias: bool = False,
    ) -> None:
        super().__init__()
        self.reduce = Pointwise(in_channels, width)
        self.mix: nn.Module = (
            DeformConv3x3(width, offset_init)
            if deformable
            else nn.Conv2d(width, width, kernel_size=3, padding=1, bias=plain_bias)
        )

    def forward(self, map_BChw: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, D, h, w)``."""
        return F.gelu(self.mix(F.gelu(self.reduce(map_BChw))))
