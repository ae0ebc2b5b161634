"""Components shared by ViT-Adapter and ViT-CoMer besides their stem: groups of blocks, the feed-forward network over
scales, the output pyramid, and the published settings.

Shapes: B batch, N patches, D width, h w map, S tokens of three scales, concatenated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from timm.layers.layer_scale import LayerScale
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from vitsplit.backbone.families import RotaryViT
from vitsplit.errors import ConfigError
from vitsplit.methods.pyramid_stem import Scales, as_tokens
from vitsplit.methods.trunk import Trunk, set_drop_path
from vitsplit.nn.deformable_attention import DeformableAttention
from vitsplit.nn.pointwise import Doubling

NORM_EPS = 1e-6
NUM_GROUPS = 4
PATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class PyramidSettings:
    """Settings that depend on the width of the transformer."""

    num_heads: int
    """Number of heads of the deformable attention."""
    deform_ratio: float
    """Channels of its values as a multiple of the width."""
    drop_path: float
    """Rate of stochastic depth of the last block (zero at the first), and of feed-forward networks over scales."""
    dim_ratio: float
    """ViT-CoMer only: channels of its multi-receptive-field network as a multiple of the width."""


PUBLISHED = {
    192: PyramidSettings(num_heads=6, deform_ratio=1.0, drop_path=0.1, dim_ratio=1.5),
    384: PyramidSettings(num_heads=6, deform_ratio=1.0, drop_path=0.2, dim_ratio=1.5),
    768: PyramidSettings(num_heads=12, deform_ratio=0.5, drop_path=0.3, dim_ratio=1.0),
    1024: PyramidSettings(num_heads=16, deform_ratio=0.5, drop_path=0.4, dim_ratio=1.0),
}
"""By width, from the authors' configurations for ADE20K. Those of ViT-CoMer have no ``dim_ratio`` for widths 192 and
1024: the value for 1024 here matches the paper's parameter count, and the value for 192 is that of 384."""


def published_settings(width: int) -> PyramidSettings:
    """The settings of a transformer of this width.

    Raises:
        ConfigError: There are none.
    """
    if width not in PUBLISHED:
        raise ConfigError(
            f"ViT-Adapter and ViT-CoMer have no published settings for a transformer of width {width}, only for "
            f"{', '.join(map(str, PUBLISHED))}. Choose a backbone of such a width (tiny, small, base, large)."
        )
    return PUBLISHED[width]


class BlockGroups(nn.Module):
    """A trunk without class and register tokens, whose blocks run in four groups of equal length.

    The unused prefix tokens and final norm are frozen. Blocks without layer scales (DeiT, AugReg) get them on both
    branches, initialized to one, as in the authors' code.

    Args:
        trunk: The transformer, modified in place.
        drop_path: Rate of stochastic depth of the last block, increasing linearly from zero at the first.

    Raises:
        ConfigError: The patch size is not 16 pixels, or the number of blocks is not divisible by four.
    """

    def __init__(self, trunk: Trunk, drop_path: float) -> None:
        super().__init__()
        if trunk.patch_size != PATCH_SIZE:
            raise ConfigError(
                f"ViT-Adapter and ViT-CoMer need patches of {PATCH_SIZE} pixels, so that the strides of their maps are "
                f"powers of two; this backbone has patches of {trunk.patch_size}. Use --patch-size {PATCH_SIZE}."
            )
        if trunk.num_layers % NUM_GROUPS:
            raise ConfigError(
                f"ViT-Adapter and ViT-CoMer require a number of blocks divisible by {NUM_GROUPS}, not "
                f"{trunk.num_layers}. Choose another backbone."
            )
        self.trunk = trunk
        self.group_length = trunk.num_layers // NUM_GROUPS
        for name, parameter in trunk.model.named_parameters():
            if name in ("cls_token", "reg_token"):
                parameter.requires_grad_(False)
        trunk.final_norm.requires_grad_(False)
        set_drop_path(trunk.blocks, drop_path)
        self.added_scales = _with_layer_scale(trunk)
        if isinstance(trunk.family, RotaryViT):
            for block in trunk.blocks:
                _without_prefix(block)

    def embed(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """``x_BND`` with positions, and the rotary position data of the grid (or None)."""
        x_BTD, rope = self.trunk.embed(pixels_BCHW)
        return x_BTD[:, self.trunk.num_prefix_tokens :], rope

    def forward(self, group: int, x_BND: Tensor, grid: tuple[int, int], rope: Tensor | None) -> Tensor:
        """Runs the blocks of a group."""
        for index in range(group * self.group_length, (group + 1) * self.group_length):
            x_BND = self.trunk.run_block(index, x_BND, grid, rope)
        return x_BND


def _with_layer_scale(trunk: Trunk) -> list[str]:
    """Adds layer scales of one to branches without; returns the names of the new parameters in the model."""
    added = []
    for index, block in enumerate(trunk.blocks):
        for place in ("ls1", "ls2"):
            if isinstance(getattr(block, place, None), nn.Identity):
                device = next(block.parameters()).device
                setattr(block, place, LayerScale(trunk.width, init_values=1.0, device=device))
                added.append(f"blocks.{index}.{place}.gamma")
    return added


def _without_prefix(block: nn.Module) -> None:
    """Makes a rotary block apply positions to all tokens, since there are no prefix tokens."""
    if not isinstance(block, EvaBlock):
        raise ConfigError(f"A rotary block of type {type(block).__name__} is not supported: choose DINOv3 or EVA-02.")
    block.attn.num_prefix_tokens = 0


class ConvFFN(nn.Module):
    """A feed-forward network with a 3x3 depthwise convolution, shared by all scales.

    Args:
        width: D.
        ratio: Hidden channels as a multiple of D.
    """

    def __init__(self, width: int, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.expand = nn.Linear(width, hidden)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, width)

    def forward(self, scales: Scales) -> Tensor:
        """Tokens of all scales, ``(B, S, D)``."""
        hidden = Scales(self.expand(scales.tokens_BSD), scales.sizes)
        return self.reduce(F.gelu(as_tokens([self.mix(map_BChw) for map_BChw in hidden.maps()])))


class PyramidOutput(nn.Module):
    """Combines the features of the convolutional branch and the transformer into four maps of width D.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enlarge = Doubling(width, width)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))

    def forward(self, finest_BDhw: Tensor, scales: Scales, groups: list[Tensor]) -> list[Tensor]:
        """Maps at 1/4, 1/8, 1/16 and 1/32 of the image.

        Args:
            finest_BDhw: The stem's map at 1/4.
            scales: Tokens of the three coarser scales after the last interaction.
            groups: Outputs of the four groups of blocks as maps at 1/16; the first is added to the finest map.
        """
        coarser = scales.maps()
        maps = [self.enlarge(coarser[0]) + finest_BDhw, *coarser]
        return [
            norm(map_BDhw + resize(group_BDhw, (map_BDhw.shape[2], map_BDhw.shape[3])))
            for norm, map_BDhw, group_BDhw in zip(self.norms, maps, groups, strict=True)
        ]


def resize(map_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing to a height and width."""
    if map_BDhw.shape[2:] == size:
        return map_BDhw
    return F.interpolate(map_BDhw, size=size, mode="bilinear", align_corners=False)


def layer_norm(width: int) -> nn.LayerNorm:
    """Layer norm with the epsilon of the transformer."""
    return nn.LayerNorm(width, eps=NORM_EPS)


def initialize(module: nn.Module) -> None:
    """The authors' initialization of new modules: truncated normal for linear layers, He for convolutions (fan out)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            fan_out = math.prod(part.kernel_size) * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / fan_out))
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    # Last, since they contain linear layers.
    for part in module.modules():
        if isinstance(part, DeformableAttention):
            part.reset_parameters()
