"""The prior head (Eq. 3): from the maps of several frozen layers to one map.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitsplit.nn.conv_block import ConvBlock
from vitsplit.nn.deformable_convolution import OffsetInit


class PriorHead(nn.Module):
    """``f'_p = g_theta_p([f_p^0; ...; f_p^(K_p - 1)])``: concatenated maps, 1x1 and 3x3 deformable convolution.

    Args:
        num_maps: K_p.
        width: D.
        deformable: See ``ConvBlock``.
        offset_init: See ``DeformConv3x3``.
    """

    def __init__(
        self, num_maps: int, width: int, *, deformable: bool = True, offset_init: OffsetInit = "default"
    ) -> None:
        super().__init__()
        self.block = ConvBlock(num_maps * width, width, deformable=deformable, offset_init=offset_init)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """K_p maps ``(B, D, h, w)`` to one."""
        return self.block(torch.cat(list(maps), dim=1))
