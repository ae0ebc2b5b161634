"""The fusion net (Eq. 4): the prior map and the task map to the fused map.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vitsplit.nn.conv_block import ConvBlock
from vitsplit.nn.deformable_convolution import OffsetInit


class FusionNet(nn.Module):
    """``f_o = g_theta_f([f'_p; f'_t])``, prior first.

    Args:
        num_maps: Number of input maps: two, or one if a head is disabled.
        width: D.
        combine: ``concat`` (the paper) or ``add`` the input maps.
        deformable: See ``ConvBlock``.
        offset_init: See ``DeformConv3x3``.
        initially_zero: Initialize the last convolution to zero, and with it the output.
    """

    def __init__(
        self,
        num_maps: int,
        width: int,
        *,
        combine: Literal["concat", "add"] = "concat",
        deformable: bool = True,
        offset_init: OffsetInit = "default",
        initially_zero: bool = False,
    ) -> None:
        super().__init__()
        self.combine = combine
        in_channels = num_maps * width if combine == "concat" else width
        self.block = ConvBlock(in_channels, width, deformable=deformable, offset_init=offset_init)
        if initially_zero:
            nn.init.zeros_(self.block.mix.get_parameter("weight"))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, D, h, w)`` to ``fused_BDhw``."""
        joined = torch.cat(list(maps), dim=1) if self.combine == "concat" else sum(maps[1:], start=maps[0])
        return self.block(joined)
