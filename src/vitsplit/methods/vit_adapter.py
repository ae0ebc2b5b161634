"""ViT-Adapter (Chen et al. 2023): a trainable transformer that exchanges features with a convolutional branch.

Shapes: B batch, N patches, D width, h w map, H W pixels, S tokens of three scales, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitsplit.methods.adapter_head import AdapterConfig
from vitsplit.methods.pyramid import ConvFFN, PyramidSettings, layer_norm
from vitsplit.methods.pyramid_stem import Scales
from vitsplit.methods.trunk import Trunk
from vitsplit.methods.two_branches import TwoBranches
from vitsplit.nn.deformable_attention import DeformableAttention, Geometry, Size

NUM_SCALES = 3
EXTRA_EXTRACTORS = 2


@dataclass(frozen=True)
class Exchange:
    """Geometry of the deformable attention between the two branches.

    Attributes:
        to_patches: Patches as queries, the three scales as levels.
        to_scales: Tokens of the three scales as queries, the patch grid as the only level.
    """

    to_patches: Geometry
    to_scales: Geometry

    @classmethod
    def of(cls, grid: Size, sizes: tuple[Size, ...], device: torch.device) -> Self:
        """Between a patch grid and scales of these sizes."""
        return cls(
            to_patches=Geometry.between([grid], sizes, device), to_scales=Geometry.between(sizes, [grid], device)
        )


class ViTAdapter(TwoBranches):
    """Four groups of blocks; patches attend to the convolutional maps before each group, and vice versa after it.

    ``gamma`` starts at zero, so that the initial transformer is the pretrained one.
    """

    def __init__(self, trunk: Trunk, **settings: Any) -> None:
        super().__init__(
            trunk, interaction=Interaction, geometry=Exchange.of, extra_extractors=EXTRA_EXTRACTORS, **settings
        )


class ViTAdapterConfig(AdapterConfig):
    """ViT-Adapter: trains the whole transformer with a convolutional branch."""

    name: ClassVar[str] = "vit-adapter"
    title: ClassVar[str] = "ViT-Adapter"
    branches: ClassVar[Callable[..., TwoBranches]] = ViTAdapter


class Interaction(nn.Module):
    """Injector, a group of blocks, and extractor, with two more extractors after the last group."""

    def __init__(
        self, width: int, settings: PyramidSettings, *, num_points: int, ffn_ratio: float, extra_extractors: int
    ) -> None:
        super().__init__()

        def attention(num_levels: int) -> DeformableAttention:
            return DeformableAttention(
                width,
                num_levels=num_levels,
                num_heads=settings.num_heads,
                num_points=num_points,
                ratio=settings.deform_ratio,
            )

        self.injector = Injector(width, attention(NUM_SCALES))
        self.extractors = nn.ModuleList(
            Extractor(width, attention(1), ConvFFN(width, ffn_ratio), drop_path=settings.drop_path)
            for _ in range(1 + extra_extractors)
        )

    def forward(
        self, x_BND: Tensor, scales: Scales, exchange: Exchange, run_blocks: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Scales]:
        """Patches and scales after the exchange."""
        x_BND = run_blocks(self.injector(x_BND, scales, exchange.to_patches))
        for extractor in self.extractors:
            scales = extractor(scales, x_BND, exchange.to_scales)
        return x_BND, scales


class Injector(nn.Module):
    """Patches attend to the three scales; the result is scaled per channel and added."""

    def __init__(self, width: int, attention: DeformableAttention) -> None:
        super().__init__()
        self.query_norm = layer_norm(width)
        self.feature_norm = layer_norm(width)
        self.attention = attention
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x_BND: Tensor, scales: Scales, geometry: Geometry) -> Tensor:
        """The updated ``x_BND``."""
        found_BND = self.attention(self.query_norm(x_BND), self.feature_norm(scales.tokens_BSD), geometry)
        return x_BND + self.gamma * found_BND


class Extractor(nn.Module):
    """Queries attend to features, with a residual connection; then a feed-forward network over scales."""

    def __init__(self, width: int, attention: DeformableAttention, ffn: ConvFFN, *, drop_path: float) -> None:
        super().__init__()
        self.query_norm = layer_norm(width)
        self.feature_norm = layer_norm(width)
        self.attention = attention
        self.ffn_norm = layer_norm(width)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)

    def forward(self, scales: Scales, feature_BND: Tensor, geometry: Geometry) -> Scales:
        """The updated scales.

        Args:
            scales: The queries: tokens of the three scales.
            feature_BND: The keys and values.
            geometry: Geometry of queries and levels.
        """
        query_BSD, sizes = scales
        query_BSD = query_BSD + self.attention(self.query_norm(query_BSD), self.feature_norm(feature_BND), geometry)
        return Scales(query_BSD + self.drop_path(self.ffn(Scales(self.ffn_norm(query_BSD), sizes))), sizes)
