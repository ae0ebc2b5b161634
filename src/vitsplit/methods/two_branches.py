"""Base of ViT-Adapter and ViT-CoMer: a transformer in four groups of blocks, and a convolutional branch.

Shapes: B batch, N patches, D width, h w grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitsplit.methods.pyramid import (
    NUM_GROUPS,
    BlockGroups,
    PyramidOutput,
    PyramidSettings,
    initialize,
    published_settings,
)
from vitsplit.methods.pyramid_stem import PyramidStem
from vitsplit.methods.trunk import Trunk
from vitsplit.nn.deformable_attention import Size


class TwoBranches(nn.Module):
    """The modules and their order, for any exchange of features between the branches.

    Batch norm replaces the authors' synchronized batch norm, which data-parallel training inserts.

    Args:
        trunk: The transformer, with patches of 16 pixels; its prefix tokens and final norm are unused, see
            ``BlockGroups``.
        interaction: Builds the interaction around a group of blocks.
        geometry: What the interactions need of the shapes: a function of the patch grid, the scales and the device.
        extra_extractors: Number of additional extractors in the last interaction.
        settings: None: those published for its width.
        num_points: Points per head and level of the deformable attention.
        ffn_ratio: Hidden channels of the feed-forward networks over scales as a multiple of D.
        stem_channels: Channels of the stem's first maps.

    Attributes:
        width: D, the channels of each map.

    Raises:
        ConfigError: The transformer is not supported, or there are no published settings for its width.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        interaction: Callable[..., nn.Module],
        geometry: Callable[[Size, tuple[Size, ...], torch.device], Any],
        extra_extractors: int,
        settings: PyramidSettings | None = None,
        num_points: int = 4,
        ffn_ratio: float = 0.25,
        stem_channels: int = 64,
    ) -> None:
        super().__init__()
        settings = settings or published_settings(trunk.width)
        self.width = trunk.width
        self.geometry = geometry
        self.blocks = BlockGroups(trunk, settings.drop_path)
        self.stem = PyramidStem(self.width, stem_channels)
        self.interactions = nn.ModuleList(
            interaction(
                self.width,
                settings,
                num_points=num_points,
                ffn_ratio=ffn_ratio,
                extra_extractors=extra_extractors if group == NUM_GROUPS - 1 else 0,
            )
            for group in range(NUM_GROUPS)
        )
        self.output: nn.Module = PyramidOutput(self.width)
        for part in (self.stem, self.interactions, self.output):
            initialize(part)

    def forward(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Maps normalized pixels, with sides divisible by 16, to ``(B, D, h, w)`` at 1/4, 1/8, 1/16 and 1/32.

        If a side is not divisible by 32, the size of the coarsest map is rounded up.
        """
        finest_BDhw, scales = self.stem(pixels_BCHW)
        grid = self.blocks.trunk.grid(pixels_BCHW)
        geometry = self.geometry(grid, scales.sizes, pixels_BCHW.device)
        x_BND, rope = self.blocks.embed(pixels_BCHW)
        groups = []
        for group, interaction in enumerate(self.interactions):
            x_BND, scales = interaction(x_BND, scales, geometry, lambda x, g=group: self.blocks(g, x, grid, rope))
            groups.append(x_BND.unflatten(1, grid).permute(0, 3, 1, 2))
        maps: list[Tensor] = self.output(finest_BDhw, scales, groups)
        return maps
