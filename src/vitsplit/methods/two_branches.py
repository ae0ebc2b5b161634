"""What ViT-Adapter and ViT-CoMer are made of: a transformer in four groups of blocks, and a convolutional branch.

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
    """The parts; how the branches exchange features is the two methods' own.

    Batch norm stands where the authors have its synchronized form, which data-parallel training puts in.

    Args:
        trunk: The transformer, with patches of 16 pixels; it loses its prefix tokens and its final norm, see
            ``BlockGroups``.
        interaction: Makes what stands around a group of blocks.
        extra_extractors: How many more extractors the last of them has.
        settings: None: those that were published for its width.
        num_points: Points per head and level of the deformable attention.
        ffn_ratio: Hidden channels of the feed-forward networks over scales as a multiple of D.
        stem_channels: Channels of the stem's first maps.

    Attributes:
        width: D, of each of the four maps.

    Raises:
        ConfigError: The transformer does not fit, or no settings were published for its width.
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
