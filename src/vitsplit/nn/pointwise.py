"""Convolutions whose windows do not overlap, as one product of matrices each.

They have the parameters and the results of PyTorch's own. Maps have their channels innermost in memory, as they are
here from the backbone on, and keep them there: PyTorch's operators copy such maps to and fro on a processor.

Shapes: B batch, C channels in, E channels out, h w grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Pointwise(nn.Conv2d):
    """``nn.Conv2d(C, E, kernel_size=1)``, with or without bias."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, E, h, w)``, channels innermost in memory."""
        if map_BChw.is_meta:  # only shapes: whoever counts products knows the operator by its name
            return super().forward(map_BChw)
        return F.linear(map_BChw.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Doubling(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d(C, E, kernel_size=2, stride=2)``: every pixel becomes four.

    PyTorch's operator takes nearly three times as long for forward and backward pass on a processor.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, map_BChw: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, h, w)`` to ``(B, E, 2h, 2w)``, channels innermost in memory."""
        if map_BChw.is_meta:  # as above
            return super().forward(map_BChw)
        batch, _, height, columns = map_BChw.shape
        # Rows and columns of the window, then channels.
        matrix_22E_C = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias_22E = None if self.bias is None else self.bias.repeat(4)
        out_Bhw_22E = F.linear(map_BChw.permute(0, 2, 3, 1), matrix_22E_C, bias_22E)
        out_BhwijE = out_Bhw_22E.view(batch, height, columns, 2, 2, -1)
        out_BhiwjE = out_BhwijE.transpose(2, 3).reshape(batch, 2 * height, 2 * columns, -1)
        return out_BhiwjE.permute(0, 3, 1, 2)
