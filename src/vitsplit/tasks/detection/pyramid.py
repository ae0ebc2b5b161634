"""From one map of a plain ViT to a feature pyramid, as the release (mmdetection's recipe for plain ViTs).

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
"""The levels that objects are read from, named by their stride in patches."""
STRIDES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Strides in patches of all levels; the last, of the largest anchors, is named ``pool``."""


class Pyramid(nn.Module):
    """Four maps of D channels at 4, 2, 1 and 1/2 of the grid, then a feature pyramid of C channels and five levels.

    The maps are ``Norm(up twice)``, ``Norm(up once)``, ``Norm(as it is)`` and ``Norm(max-pooled)``, where up is
    ConvT 2x2 -> GN -> GELU: ``12 D^2 + 17 D`` parameters. The pyramid's are ``4 (D C + C) + 4 (9 C^2 + C)``.

    Pooling rounds odd grids up. A level's cell i then begins at i strides whatever the size of the grid, and the
    pyramid's way down, which repeats cells, puts each onto the two that it covers. (Rounded down, as in the release,
    whose grids are even, repeating would shift cells by up to one stride.)

    Args:
        width: D, a multiple of 32.
        channels: C.
        norm: Last norm of the four maps: ``batch``, or ``group`` which needs no statistics over the batch.
        learned: Whether the maps are made by transposed convolutions; else, for the linear probe, by bilinear resizing.
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
        """``fused_BDhw`` to five maps of C channels by name, the finest first."""
        maps = (self.up4(fused_BDhw), self.up2(fused_BDhw), fused_BDhw, self.down(fused_BDhw))
        normed = (norm(map_BDhw) for norm, map_BDhw in zip(self.norms, maps, strict=True))
        return self.fpn(dict(zip(POOLED_LEVELS, normed, strict=True)))


def _up(width: int) -> tuple[nn.Module, ...]:
    return Doubling(width, width), nn.GroupNorm(GROUPS, width), nn.GELU()
