"""A transposed convolution that doubles a map's sides, as one product of matrices.

Shapes: B batch, C channels in, E channels out, h w grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Doubling(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d(C, E, kernel_size=2, stride=2)``, with its parameters and its result.

    Windows that do not overlap need no convolution: every pixel becomes four by a product with one matrix. PyTorch's
    operator takes nearly three times as long for forward and backward pass on a processor where channels are innermost,
    as they are here from the backbone on.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)

    def forward(self, map_BChw: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, h, w)`` to ``(B, E, 2h, 2w)``, channels innermost in memory."""
        if map_BChw.is_meta:  # only shapes: whoever counts products knows the operator by its name
            return super().forward(map_BChw)
        batch, _, height, columns = map_BChw.shape
        # Rows and columns of the window, then channels.
        matrix_22E_C = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias_22E = None if self.bias is None else self.bias.repeat(4)
        out_Bhw_22E = F.linear(map_BChw.permute(0, 2, 3, 1), matrix_22E_C, bias_22E)
        out_BhwijE = out_Bhw_22E.view(batch, height, columns, 2, 2, -1)
        out_BhiwjE = out_BhwijE.transpose(2, 3).reshape(batch, 2 * height, 2 * columns, -1)
        return out_BhiwjE.permute(0, 3, 1, 2)
