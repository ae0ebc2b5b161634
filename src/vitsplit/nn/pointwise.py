"""Convolutions with non-overlapping windows, each computed as one matrix product.

Parameters and results equal those of PyTorch's layers. Maps stay in channels-last memory, which is the format of the
backbone's outputs; on a CPU, PyTorch's operators convert such maps back and forth.

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
        """``(B, C, h, w)`` to ``(B, E, h, w)``, in channels-last memory."""
        if map_BChw.is_meta:  # shapes only: FLOP counters recognize the convolution operator
            return super().forward(map_BChw)
        return F.linear(map_BChw.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Doubling(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d(C, E, kernel_size=2, stride=2)``: doubles the resolution.

    On a CPU, PyTorch's operator takes nearly three times as long (forward and backward).

    Args:
        in_channels: C.
        out_channels: E.
        smoothed: Apply ``smooth`` to the output.
    """

    def __init__(self, in_channels: int, out_channels: int, *, smoothed: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size=2, stride=2)
        self.smoothed = smoothed

    def forward(self, map_BChw: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(B, C, h, w)`` to ``(B, E, 2h, 2w)``, in channels-last memory."""
        doubled = self._double(map_BChw)
        return smooth(doubled) if self.smoothed else doubled

    def _double(self, map_BChw: Tensor) -> Tensor:
        if map_BChw.is_meta:  # see ``Pointwise``
            return super().forward(map_BChw)
        batch, _, height, columns = map_BChw.shape
        # Rows and columns of the window, then channels.
        matrix_22E_C = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        bias_22E = None if self.bias is None else self.bias.repeat(4)
        out_Bhw_22E = F.linear(map_BChw.permute(0, 2, 3, 1), matrix_22E_C, bias_22E)
        out_BhwijE = out_Bhw_22E.view(batch, height, columns, 2, 2, -1)
        out_BhiwjE = out_BhwijE.transpose(2, 3).reshape(batch, 2 * height, 2 * columns, -1)
        return out_BhiwjE.permute(0, 3, 1, 2)


def smooth(map_BChw: Tensor) -> Tensor:
    """Filters a map with the kernel 1/4 1/2 1/4 along both axes, with replicated borders; the size stays.

    After ``Doubling`` it removes any pattern of period 2, which the four positions of that kernel may add to a map
    (Sugawara et al. 2018, Kinoshita and Kiya 2020), and equal positions become bilinear interpolation.
    """
    padded = F.pad(map_BChw, (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, kernel_size=2, stride=1), kernel_size=2, stride=1)


class NormedPointwise(nn.Module):
    """Batch norm and a 1x1 convolution: ``(B, D, h, w)`` to ``(B, K, h, w)``. What a linear probe reads a map with."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classify = Pointwise(width, num_outputs)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``map_BDhw`` to logits."""
        return self.classify(self.norm(map_BDhw))
