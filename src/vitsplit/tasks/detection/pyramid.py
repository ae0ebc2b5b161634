"""Feature pyramid from one map of a plain ViT, as in the release (mmdetection's recipe for plain ViTs).

Shapes: B batch, D width, P patch size in pixels, C channels of the pyramid, h w patch grid.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitsplit.nn.pointwise import Doubling

GROUPS = 32
POOLED_LEVELS = ("1/4", "1/2", "1", "2")
"""Levels for RoI pooling, named by their stride in patches."""
STRIDES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Strides of all levels in patches; the last one, for the largest anchors, is named ``pool``."""


class Pyramid(nn.Module):
    """Four maps of D channels at 4, 2, 1 and 1/2 times the grid size, then an FPN with C channels and five levels.

    The maps are ``Norm(Up(Up(x)))``, ``Norm(Up(x))``, ``Norm(x)`` and ``Norm(MaxPool(x))`` with Up = ConvT 2x2 -> GN
    -> GELU: ``12 D^2 + 17 D`` parameters. The FPN has ``4 (D C + C) + 4 (9 C^2 + C)``.

    Pooling rounds odd grids up, so that cell i of a level starts at i strides for any grid size, and the
    nearest-neighbor upsampling of the FPN is aligned. (Rounding down, as in the release with its even grids, would
    shift cells by up to one stride.)

    Args:
        width: D, a multiple of 32.
        channels: C.
        norm: Norm of the four maps: ``batch``, or ``group`` which needs no batch statistics.
        learned: Whether upsampling is by transposed convolutions; otherwise bilinear, for the linear probe.
    """

    def __init__(
        self, width: int, channels: int, *, norm: Literal["batch", "group"] = "batch", learned: bool = True
    ) -> None:
        super().__init__()
        self.up4: nn.Module = nn.Upsample(scale_factor=4, mode="bilinear")
        self.up2: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear")
        if learned:
            self.up4 = nn.Sequential(*_up(width), *_up(width))
            self.up2 = nn.Sequential(*_up(width))
        self.down = nn.MaxPool2d(2, ceil_mode=True)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(GROUPS, width) for _ in POOLED_LEVELS
        )
        self.fpn = FeaturePyramidNetwork([width] * len(POOLED_LEVELS), channels, extra_blocks=LastLevelMaxPool())

    def forward(self, fused_BDhw: Tensor) -> dict[str, Tensor]:
        """``fused_BDhw`` to five maps of C channels by level name, the finest first."""
        maps = (self.up4(fused_BDhw), self.up2(fused_BDhw), fused_BDhw, self.down(fused_BDhw))
        normed = (norm(map_BDhw) for norm, map_BDhw in zip(self.norms, maps, strict=True))
        return self.fpn(dict(zip(POOLED_LEVELS, normed, strict=True)))


def _up(width: int) -> tuple[nn.Module, ...]:
    return Doubling(width, width), nn.GroupNorm(GROUPS, width), nn.GELU()
