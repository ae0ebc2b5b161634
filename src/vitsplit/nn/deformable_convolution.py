"""Deformable convolution, version 1 (Dai et al. 2017), in plain PyTorch operations.

Sampling is an embedding bag of four rows per position (``bilinear_sampling``), and the convolution is one matrix
product over the sampled rows. Equivalent to ``torchvision.ops.deform_conv2d`` without mask, but several times faster
on a CPU, up to three times on a GPU (``benchmarks/deformable.py``), and available in bfloat16, for which that operator
has no kernel.

Shapes: B batch, D channels in, E channels out, h w grid, N = B*h*w pixels; 9 taps of the 3x3 kernel in row-major order.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from vitsplit.nn.activation_checkpointing import recomputed
from vitsplit.nn.bilinear_sampling import bilinear_neighbors

NUM_TAPS = 9
Implementation = Literal["rows", "torchvision", "grid"]
OffsetInit = Literal["default", "zero"]


class DeformConv3x3(nn.Module):
    """Offsets from a plain 3x3 convolution, then a 3x3 deformable convolution: stride 1, padding 1, one offset group.

    As in the release: the offset convolution has a bias and PyTorch's default initialization, the deformable weight has
    no bias and Kaiming-uniform initialization for ReLU, and there is no modulation mask.

    Args:
        width: Channels in and out.
        offset_init: ``default``, or ``zero`` to start as a plain convolution.

    Attributes:
        implementation: ``rows`` (``deform_conv3x3``); for export, in float32, ``torchvision`` (its operator) or
            ``grid`` (``deform_conv3x3_by_grid``).
    """

    def __init__(self, width: int, offset_init: OffsetInit = "default") -> None:
        super().__init__()
        self.implementation: Implementation = "rows"
        self.offset = nn.Conv2d(width, 2 * NUM_TAPS, kernel_size=3, padding=1)
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if offset_init == "zero":
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``(B, D, h, w)`` to ``(B, D, h, w)``."""
        offset_BChw = self.offset(map_BDhw)
        if self.implementation == "torchvision":
            return deform_conv2d(map_BDhw.float(), offset_BChw.float(), self.weight.float(), padding=1)
        if self.implementation == "grid":
            return deform_conv3x3_by_grid(map_BDhw.float(), offset_BChw.float(), self.weight.float())
        return deform_conv3x3(map_BDhw, offset_BChw, self.weight)


def deform_conv3x3(map_BDhw: Tensor, offset_BChw: Tensor, weight_EDkk: Tensor) -> Tensor:
    """3x3 deformable convolution with stride 1 and padding 1; zeros outside the map.

    Args:
        map_BDhw: Input.
        offset_BChw: 18 channels ``(dy0, dx0, dy1, dx1, ...)`` in pixels of the map.
        weight_EDkk: Kernel, ``(E, D, 3, 3)``.

    Returns:
        ``(B, E, h, w)``, channels innermost in memory.
    """
    batch, width, height, columns = map_BDhw.shape
    rows_ND = map_BDhw.permute(0, 2, 3, 1).reshape(-1, width)
    index_M4, share_M4 = _neighbors(offset_BChw, height, columns)
    kernel_CE = weight_EDkk.permute(2, 3, 1, 0).reshape(NUM_TAPS * width, -1)
    # On a GPU sampling is in float32: there is no kernel for the gradient of bfloat16 weights.
    sample_dtype = rows_ND.dtype if rows_ND.device.type == "cpu" else share_M4.dtype
    # The sampled rows are nine times as large as the map and cheap to recompute.
    out_NE = recomputed(_sampled_product, rows_ND, index_M4, share_M4.to(sample_dtype), kernel_CE)
    return out_NE.view(batch, height, columns, -1).permute(0, 3, 1, 2)


def deform_conv3x3_by_grid(map_BDhw: Tensor, offset_BChw: Tensor, weight_EDkk: Tensor) -> Tensor:
    """``deform_conv3x3`` as one ``grid_sample`` of all taps and one matrix product, for runtimes without its operator.

    Arguments and result are those of ``deform_conv3x3``; the size may be symbolic.
    """
    height, columns = map_BDhw.shape[2:]
    reach = torch.arange(-1, 2, device=map_BDhw.device)
    offset_B92hw = offset_BChw.unflatten(1, (NUM_TAPS, 2))
    row_h1 = torch.arange(height, device=map_BDhw.device)[:, None]
    column_w = torch.arange(columns, device=map_BDhw.device)
    y_B9hw = offset_B92hw[:, :, 0] + reach.repeat_interleave(3)[:, None, None] + row_h1
    x_B9hw = offset_B92hw[:, :, 1] + reach.repeat(3)[:, None, None] + column_w
    # From pixels to -1..1 between the outer edges of the map.
    grid_B9hw2 = torch.stack([(2 * x_B9hw + 1) / columns - 1, (2 * y_B9hw + 1) / height - 1], dim=-1)
    sampled_BDXw = F.grid_sample(map_BDhw, grid_B9hw2.flatten(1, 2), align_corners=False)
    sampled_BD9hw = sampled_BDXw.unflatten(2, (NUM_TAPS, height))
    return F.conv2d(sampled_BD9hw.flatten(1, 2), weight_EDkk.flatten(1)[:, :, None, None])


def _sampled_product(rows_ND: Tensor, index_M4: Tensor, share_M4: Tensor, kernel_CE: Tensor) -> Tensor:
    """The nine sampled rows of every pixel, times the kernel: ``(N, E)``."""
    sampled_MD = F.embedding_bag(index_M4, rows_ND.to(share_M4.dtype), per_sample_weights=share_M4, mode="sum")
    return sampled_MD.to(rows_ND.dtype).view(-1, len(kernel_CE)) @ kernel_CE


def _neighbors(offset_BChw: Tensor, height: int, columns: int) -> tuple[Tensor, Tensor]:
    """Indices and bilinear weights of the four pixels around each position; M = N * 9 positions, taps innermost.

    Positions are at least float32 in every precision.
    """
    batch, device = offset_BChw.shape[0], offset_BChw.device
    position_dtype = torch.promote_types(offset_BChw.dtype, torch.float32)
    offset_Bhw92 = offset_BChw.to(position_dtype).permute(0, 2, 3, 1).reshape(batch, height, columns, NUM_TAPS, 2)
    reach = torch.arange(-1, 2, device=device)
    y_Bhw9 = offset_Bhw92[..., 0] + reach.repeat_interleave(3) + torch.arange(height, device=device).view(-1, 1, 1)
    x_Bhw9 = offset_Bhw92[..., 1] + reach.repeat(3) + torch.arange(columns, device=device).view(-1, 1)
    sides = (torch.full((), side, dtype=torch.int32, device=device) for side in (columns, height))
    first_B111 = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1, 1) * (height * columns)
    index_Bhw94, share_Bhw94 = bilinear_neighbors(x_Bhw9, y_Bhw9, *sides, first=first_B111)
    return index_Bhw94.view(-1, 4), share_Bhw94.view(-1, 4)
