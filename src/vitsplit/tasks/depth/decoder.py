"""Depth decoders: the paper's depth head, and the linear probe's.

Both predict ``min_depth + ReLU(x)`` in meters as in the release, without bins or sigmoid. The bias of the last layer
is initialized to predict ``start_depth``: near zero, half of the pixels would start without gradient, and a linear
probe may stay there. Batch norm before the last layer removes means, so this bias sets the mean depth almost alone, and
in a few hundred steps it moves by centimeters only. Predictions are clamped to ``max_depth`` in eval mode only, so that
gradients are not lost in training.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.nn.pointwise import Doubling, NormedPointwise
from vitsplit.precision import autocast
from vitsplit.tasks.depth.config import DepthConfig

GROUPS = 32
CHANNELS = 64
"""Channels before the last convolution."""


class DepthDecoder(nn.Module):
    """ConvT 2x2 (D to D/2) -> GN -> GELU -> ConvT 2x2 (D/2 to 64) -> GN -> GELU -> BN -> Conv3x3 (64 to 1) -> meters.

    ``2 D^2 + 129.5 D + 897`` parameters: 0.35 / 1.28 / 2.23 M for S / B / L (Table 12).

    The sixteen output positions of a patch have independent initial weights, whose differences the norms scale to unit
    variance: on a smooth map the untrained prediction is a random 4x4 pattern with a standard deviation of 0.6 m, the
    same in every patch, which training has to remove. With ``smooth_upsampling`` every ConvT is followed by ``smooth``,
    so that a constant map has no pattern, untrained or trained.

    Args:
        width: D, a multiple of 64.
        config: ``decoder_norm``, ``smooth_upsampling``, and the depth range.
        start_depth: Initial prediction in meters.
    """

    def __init__(self, width: int, config: DepthConfig, start_depth: float) -> None:
        super().__init__()
        self.up1 = Doubling(width, width // 2, smoothed=config.smooth_upsampling)
        self.norm1 = nn.GroupNorm(GROUPS, width // 2)
        self.up2 = Doubling(width // 2, CHANNELS, smoothed=config.smooth_upsampling)
        self.norm2 = nn.GroupNorm(GROUPS, CHANNELS)
        batch = config.decoder_norm == "batch"
        self.last_norm: nn.Module = nn.BatchNorm2d(CHANNELS) if batch else nn.GroupNorm(GROUPS, CHANNELS)
        self.regress = nn.Conv2d(CHANNELS, 1, kernel_size=3, padding=1)
        init_bias(self.regress, config, start_depth)
        self.meters = Meters(config)

    def forward(self, fused_BDhw: Tensor) -> Tensor:
        """``fused_BDhw`` to meters, (B, 1, 4h, 4w) float32."""
        x = F.gelu(self.norm1(self.up1(fused_BDhw)))
        x = F.gelu(self.norm2(self.up2(x)))
        # bf16 has a resolution of 3 cm at 4 m.
        with autocast(x.device.type, torch.float32):
            return self.meters(self.regress(self.last_norm(x.float())))


class LinearDepthDecoder(nn.Module):
    """Batch norm and a 1x1 convolution to meters: (B, D, h, w) to (B, 1, h, w) float32.

    Arguments are those of ``DepthDecoder``.
    """

    def __init__(self, width: int, config: DepthConfig, start_depth: float) -> None:
        super().__init__()
        self.linear = NormedPointwise(width, 1)
        init_bias(self.linear.classify, config, start_depth)
        self.meters = Meters(config)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``map_BDhw`` to meters."""
        with autocast(map_BDhw.device.type, torch.float32):
            return self.meters(self.linear(map_BDhw.float()))


class Meters(nn.Module):
    """``min_depth + ReLU(x)``, clamped to ``max_depth`` in eval mode."""

    def __init__(self, config: DepthConfig) -> None:
        super().__init__()
        self.min_depth, self.max_depth = config.min_depth, config.max_depth

    def forward(self, x: Tensor) -> Tensor:
        """Network outputs to meters."""
        depth = F.relu(x) + self.min_depth
        return depth if self.training or self.max_depth is None else depth.clamp(max=self.max_depth)


def init_bias(last: nn.Conv2d, config: DepthConfig, start_depth: float) -> None:
    """Initializes the bias of the last layer so that the untrained decoder predicts ``start_depth`` on average."""
    assert last.bias is not None
    nn.init.constant_(last.bias, start_depth - config.min_depth)
