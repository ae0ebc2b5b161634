"""ViT-CoMer (Xia et al. 2024): a trainable transformer with a convolutional branch that attends to itself.

In ViT-Adapter, the branches attend to each other. Here the convolutional branch attends over its own three scales, with
the patches added to the middle one, and the sum of the results is added to the patches.

Shapes: B batch, N patches, D width, h w map, H W pixels, S tokens of three scales, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitsplit.errors import ConfigError
from vitsplit.methods.adapter_head import AdapterConfig
from vitsplit.methods.pyramid import ConvFFN, PyramidSettings, layer_norm, resize
from vitsplit.methods.pyramid_stem import Scales, as_tokens
from vitsplit.methods.trunk import Trunk
from vitsplit.methods.two_branches import TwoBranches
from vitsplit.methods.vit_adapter import Extractor
from vitsplit.nn.deformable_attention import DeformableAttention, Geometry, Size

NUM_SCALES = 3
PATCH_SCALE = 1
"""Index of the scale with the patch grid."""
EXTRA_EXTRACTORS = 4


class ViTCoMer(TwoBranches):
    """Four groups of blocks, each between two steps of convolution-transformer interaction (CTI).

    ``gamma`` starts at zero, so that the initial transformer is the pretrained one.
    """

    def __init__(self, trunk: Trunk, **settings: Any) -> None:
        super().__init__(
            trunk, interaction=Interaction, geometry=between_scales, extra_extractors=EXTRA_EXTRACTORS, **settings
        )


def between_scales(grid: Size, sizes: tuple[Size, ...], device: torch.device) -> Geometry:
    """The geometry between the scales, one of which has the patch grid."""
    return Geometry.between(sizes, sizes, device)


class ViTCoMerConfig(AdapterConfig):
    """ViT-CoMer: trains the whole transformer with a convolutional branch."""

    name: ClassVar[str] = "vit-comer"
    title: ClassVar[str] = "ViT-CoMer"
    branches: ClassVar[Callable[..., TwoBranches]] = ViTCoMer


class Interaction(nn.Module):
    """Multi-receptive-field network, CTI to patches, a group of blocks, CTI to scales (five times in the last)."""

    def __init__(
        self, width: int, settings: PyramidSettings, *, num_points: int, ffn_ratio: float, extra_extractors: int
    ) -> None:
        super().__init__()

        def attention() -> DeformableAttention:
            return DeformableAttention(
                width,
                num_levels=NUM_SCALES,
                num_heads=settings.num_heads,
                num_points=num_points,
                ratio=settings.deform_ratio,
            )

        def ffn() -> ConvFFN:
            return ConvFFN(width, ffn_ratio)

        rate = settings.drop_path
        self.receptive = MultiReceptive(width, settings.dim_ratio)
        self.to_patches = ToPatches(width, attention(), ffn(), drop_path=rate)
        self.to_scales = nn.ModuleList(
            ToScales(width, attention(), ffn(), first_ffn=ffn() if index else None, drop_path=rate)
            for index in range(1 + extra_extractors)
        )

    def forward(
        self, x_BND: Tensor, scales: Scales, geometry: Geometry, run_blocks: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Scales]:
        """Patches and scales after the exchange."""
        scales = add_patches(self.receptive(scales), x_BND)
        x_BND = run_blocks(self.to_patches(x_BND, scales, geometry))
        for to_scales in self.to_scales:
            scales = to_scales(scales, x_BND, geometry)
        return x_BND, scales


def add_patches(scales: Scales, x_BND: Tensor) -> Scales:
    """The scales with the patches added to the one of the same grid."""
    parts = list(scales.tokens_BSD.split([height * width for height, width in scales.sizes], dim=1))
    parts[PATCH_SCALE] = parts[PATCH_SCALE] + x_BND
    return Scales(torch.cat(parts, dim=1), scales.sizes)


class MultiReceptive(nn.Module):
    """Two parallel depthwise convolutions, 3x3 on half of the channels and 5x5 on the other half.

    Each scale has its own convolutions and batch norm; the linear layers around them are shared. There is no residual
    connection.

    Raises:
        ConfigError: The number of hidden channels is odd.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        if hidden % 2:
            raise ConfigError(f"ViT-CoMer: {hidden} hidden channels (width {width}, ratio {ratio}) are not even.")
        half = hidden // 2
        self.expand = nn.Linear(width, hidden)
        self.near = nn.ModuleList(nn.Conv2d(half, half, 3, padding=1, groups=half) for _ in range(NUM_SCALES))
        self.far = nn.ModuleList(nn.Conv2d(half, half, 5, padding=2, groups=half) for _ in range(NUM_SCALES))
        self.norms = nn.ModuleList(nn.BatchNorm2d(hidden) for _ in range(NUM_SCALES))
        self.reduce = nn.Linear(hidden, width)

    def forward(self, scales: Scales) -> Scales:
        """Tokens of the same scales."""
        maps = []
        hidden = Scales(self.expand(scales.tokens_BSD), scales.sizes)
        for map_BChw, near, far, norm in zip(hidden.maps(), self.near, self.far, self.norms, strict=True):
            first, second = map_BChw.chunk(2, dim=1)
            # The activation is applied twice, here and after concatenating the scales, as in the authors' code.
            maps.append(F.gelu(norm(torch.cat([near(first), far(second)], dim=1))))
        return Scales(self.reduce(F.gelu(as_tokens(maps))), scales.sizes)


class ToPatches(nn.Module):
    """CTI to patches: adds the sum over scales of their self-attention, scaled per channel, to the patches."""

    def __init__(self, width: int, attention: DeformableAttention, ffn: ConvFFN, *, drop_path: float) -> None:
        super().__init__()
        self.query_norm = layer_norm(width)
        self.feature_norm = layer_norm(width)
        self.attention = attention
        self.ffn_norm = layer_norm(width)
        self.ffn = ffn
        self.drop_path = DropPath(drop_path)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x_BND: Tensor, scales: Scales, geometry: Geometry) -> Tensor:
        """The updated ``x_BND``; the scales are unchanged."""
        tokens_BSD, sizes = scales
        found_BSD = self.attention(self.query_norm(tokens_BSD), self.feature_norm(tokens_BSD), geometry)
        found_BSD = found_BSD + self.drop_path(self.ffn(Scales(self.ffn_norm(found_BSD), sizes)))
        maps = [resize(map_BDhw, sizes[PATCH_SCALE]) for map_BDhw in Scales(found_BSD, sizes).maps()]
        return x_BND + self.gamma * as_tokens([sum(maps[1:], start=maps[0])])


class ToScales(nn.Module):
    """CTI to scales: adds the patches to one scale, and applies self-attention over scales.

    Attention operates on the normalized scales, including the residual. The four extra extractors have an additional
    feed-forward network first.
    """

    def __init__(
        self,
        width: int,
        attention: DeformableAttention,
        ffn: ConvFFN,
        *,
        first_ffn: ConvFFN | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.first_ffn = first_ffn
        self.first_norm = None if first_ffn is None else layer_norm(width)
        self.query_norm = layer_norm(width)
        self.feature_norm = layer_norm(width)
        self.extractor = Extractor(width, attention, ffn, drop_path=drop_path)
        self.drop_path = DropPath(drop_path)

    def forward(self, scales: Scales, x_BND: Tensor, geometry: Geometry) -> Scales:
        """The updated scales."""
        tokens_BSD, sizes = add_patches(scales, x_BND)
        if self.first_ffn is not None and self.first_norm is not None:
            tokens_BSD = tokens_BSD + self.drop_path(self.first_ffn(Scales(self.first_norm(tokens_BSD), sizes)))
        return self.extractor(Scales(self.query_norm(tokens_BSD), sizes), self.feature_norm(tokens_BSD), geometry)
