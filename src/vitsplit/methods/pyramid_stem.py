"""The convolutional branch of ViT-Adapter and ViT-CoMer: from pixels to maps at four scales.

Shapes: B batch, D width, H W pixels, S tokens of the three coarser scales, concatenated.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitsplit.nn.deformable_attention import Size
from vitsplit.nn.pointwise import Pointwise


class Scales(NamedTuple):
    """Maps of several scales as one sequence of tokens.

    Attributes:
        tokens_BSD: The concatenated tokens of the maps, row by row.
        sizes: Height and width of each map.
    """

    tokens_BSD: Tensor
    sizes: tuple[Size, ...]

    def maps(self) -> list[Tensor]:
        """The maps, ``(B, D, h, w)``, as views in channels-last layout."""
        parts = self.tokens_BSD.split([height * width for height, width in self.sizes], dim=1)
        return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, self.sizes, strict=True)]


def as_tokens(maps: list[Tensor]) -> Tensor:
    """Maps ``(B, D, h, w)`` to one sequence ``(B, S, D)``."""
    return torch.cat([map_BDhw.flatten(2).mT for map_BDhw in maps], dim=1)


class PyramidStem(nn.Module):
    """Strided convolutions with batch norm and ReLU: maps at 1/4, 1/8, 1/16 and 1/32 of the image, of width D.

    Args:
        width: D.
        channels: Channels at 1/2 and 1/4; twice as many at 1/8, four times at 1/16 and 1/32.
    """

    def __init__(self, width: int, channels: int = 64) -> None:
        super().__init__()
        wide, widest = 2 * channels, 4 * channels
        self.quarter = nn.Sequential(
            *_convolution(3, channels, stride=2),
            *_convolution(channels, channels),
            *_convolution(channels, channels),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.eighth = nn.Sequential(*_convolution(channels, wide, stride=2))
        self.sixteenth = nn.Sequential(*_convolution(wide, widest, stride=2))
        self.half_of_that = nn.Sequential(*_convolution(widest, widest, stride=2))
        self.widen = nn.ModuleList(Pointwise(count, width) for count in (channels, wide, widest, widest))
        self.level_3D = nn.Parameter(torch.randn(3, width))
        """Level embedding of the three scales."""

    def forward(self, pixels_BCHW: Tensor) -> tuple[Tensor, Scales]:
        """The map at 1/4, and the three coarser ones as tokens; odd sides are rounded up at 1/32."""
        at_4 = self.quarter(pixels_BCHW)
        at_8 = self.eighth(at_4)
        at_16 = self.sixteenth(at_8)
        at_32 = self.half_of_that(at_16)
        finest, *maps = (
            widen(map_BChw) for widen, map_BChw in zip(self.widen, (at_4, at_8, at_16, at_32), strict=True)
        )
        leveled = [map_BDhw + level_D[:, None, None] for map_BDhw, level_D in zip(maps, self.level_3D, strict=True)]
        return finest, Scales(as_tokens(leveled), tuple((part.shape[2], part.shape[3]) for part in leveled))


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
