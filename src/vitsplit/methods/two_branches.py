"""Base of ViT-Adapter and ViT-CoMer: a transformer in four groups of blocks, and a convolutional branch.

Shapes: B batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

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


class TwoBranches(nn.Module):
    """The modules; subclasses define how the branches exchange features.

    Batch norm replaces the authors' synchronized batch norm, which data-parallel training inserts.

    Args:
        trunk: The transformer, with patches of 16 pixels; its prefix tokens and final norm are unused, see
            ``BlockGroups``.
        interaction: Builds the interaction around a group of blocks.
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
        extra_extractors: int,
        settings: PyramidSettings | None = None,
        num_points: int = 4,
        ffn_ratio: float = 0.25,
        stem_channels: int = 64,
    ) -> None:
        super().__init__()
        settings = settings or published_settings(trunk.width)
        self.width = trunk.width
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
