"""The frozen backbone: images in, taps out, one pass for any number of heads.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.families import Family, PositionResample, family_of
from vitsplit.engine.precision import autocast
from vitsplit.errors import ConfigError
from vitsplit.types import LayerTaps, Padding, TapRequest


@dataclass(frozen=True)
class BackboneInfo:
    """What is known of a backbone besides its tensors.

    Attributes:
        name: The name it was asked for by; loads it again.
        timm_name: The timm model, with tag.
        licence: Licence of the weights.
        source: Where the weights came from, in words.
        weights_hash: SHA-256 over the tensors (names, shapes, bytes) and whatever else changes what is computed with
            them: resampling, and an activation that is not timm's. Says whether two backbones are the same.
        mean: Per-channel mean that pixels in 0..1 are normalised with.
        std: Per-channel standard deviation.
        resampled: What the weights were resampled to, such as ``patch 16``, and positions by another rule than timm's;
            empty where they are as they were trained.
        former_hash: What ``weights_hash`` was in versions that ran this entry of the catalog with plain GELU instead of
            its publisher's activation; empty for others.
    """

    name: str
    timm_name: str
    licence: str
    source: str
    weights_hash: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampled: str = ""
    former_hash: str = ""

    @property
    def title(self) -> str:
        """The name for people, which tells backbones apart: ``dinov2-small (patch 16)``."""
        return f"{self.name} ({self.resampled})" if self.resampled else self.name


class Backbone(nn.Module):
    """A vision transformer that never changes: no gradient, never in train mode, nothing computed twice.

    It owns everything about pixels and tokens: normalisation, padding to the patch size, position embeddings, prefix
    tokens, the final norm, and the precision it computes in.

    Args:
        model: A timm model of one of the three families.
        info: Name, licence, source, hash and pixel statistics.
        positions: How positions are resampled to other grids than the one of training, see ``position_rule``.

    Attributes:
        width: D.
        num_layers: L, the number of blocks.
        patch_size: Pixels per side of a patch.
        num_prefix_tokens: Class and register tokens.
    """

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, model: Any, info: BackboneInfo, positions: PositionResample = "timm") -> None:
        super().__init__()
        self.info = info
        self.family: Family = family_of(model, positions)
        self.model: Any = model.requires_grad_(False).eval()
        self.width: int = int(model.embed_dim)
        self.num_layers: int = len(model.blocks)
        self.num_prefix_tokens: int = self.family.num_prefix_tokens(model)
        patch_height, patch_width = model.patch_embed.patch_size
        if patch_height != patch_width:
            raise ConfigError(f"{info.name}: patches of {patch_height}x{patch_width} pixels are not square.")
        self.patch_size: int = int(patch_height)
        self.precision: torch.dtype = torch.float32
        scale = 255.0
        self.register_buffer("mean_C11", torch.tensor(info.mean).view(-1, 1, 1) * scale, persistent=False)
        self.register_buffer("std_C11", torch.tensor(info.std).view(-1, 1, 1) * scale, persistent=False)

    @property
    def name(self) -> str:
        """The name for people; ``info.name`` is the one that loads it."""
        return self.info.title

    @property
    def blocks(self) -> list[nn.Module]:
        """The L blocks, in order."""
        return list(self.model.blocks)

    @property
    def final_norm(self) -> nn.Module:
        """The norm over tokens after the last block; identity where the model has none."""
        return self.family.final_norm(self.model)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is called on the module around it."""
        return super().train(False)

    def set_precision(self, dtype: torch.dtype) -> Self:
        """Computes in ``dtype`` from now on.

        Matrices are stored in it; norms, positions and the residual stream stay float32.

        Raises:
            ConfigError: The matrices were rounded to another precision before.
        """
        if self.precision not in (torch.float32, dtype):
            raise ConfigError(
                f"{self.name} was already rounded to {self.precision}: load it again to compute in {dtype}."
            )
        self.precision = dtype
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        return self

    def padding(self, height: int, width: int) -> Padding:
        """Centred zeros to the next multiple of the patch size (512 -> 518 at 14), the odd one at right and bottom."""
        extra_height = -height % self.patch_size
        extra_width = -width % self.patch_size
        top, left = extra_height // 2, extra_width // 2
        return Padding(left=left, top=top, right=extra_width - left, bottom=extra_height - top)

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """uint8 pixels (or float in 0..1) to normalised float32; zero is the mean colour.

        Raises:
            ConfigError: The tensor is not a batch of three-channel images, uint8 or float.
        """
        is_image = image_BCHW.ndim == 4 and image_BCHW.shape[1] == 3
        if not is_image or not (image_BCHW.dtype == torch.uint8 or image_BCHW.is_floating_point()):
            raise ConfigError(
                f"{self.name} takes RGB images as (B, 3, H, W), uint8 in 0..255 or float in 0..1; "
                f"it was given {tuple(image_BCHW.shape)} of {image_BCHW.dtype}."
            )
        scaled_BCHW = image_BCHW.float() if image_BCHW.dtype == torch.uint8 else image_BCHW.float() * 255.0
        return (scaled_BCHW - self.mean_C11) / self.std_C11

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor, request: TapRequest, extent_B2: Tensor | None = None) -> LayerTaps:
        """Runs the blocks that the request needs, once, and hands out what it names.

        Args:
            image_BCHW: RGB, uint8 in 0..255 or float in 0..1, of any size.
            request: What is wanted; blocks above the highest one asked for are not run.
            extent_B2: Height and width (int64) of the content of each image; pixels below and at the right of it
                are set to zero after normalization. None: all is content.

        Returns:
            Taps without gradient history. Token sequences keep the float32 residual stream; maps have the precision
            that the backbone computes in (``set_precision``).

        Raises:
            ConfigError: The request names a block that the backbone does not have, or the images are not images.
        """
        if request.num_blocks > self.num_layers:
            raise ConfigError(f"{self.name} has {self.num_layers} blocks; {request.num_blocks} were asked for.")
        height, width = image_BCHW.shape[-2:]
        padding = self.padding(height, width)
        pixels_BCHW = self.normalise(image_BCHW)
        if extent_B2 is not None:
            pixels_BCHW = _zero_outside(pixels_BCHW, extent_B2)
        pixels_BCHW = F.pad(pixels_BCHW, (padding.left, padding.right, padding.top, padding.bottom))
        grid = (pixels_BCHW.shape[-2] // self.patch_size, pixels_BCHW.shape[-1] // self.patch_size)
        tokens: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}
        raw_maps: dict[int, Tensor] = {}
        rope: Tensor | None = None
        if request.tokens or request.num_blocks:
            with autocast(pixels_BCHW.device.type, self.precision):
                x_BTD, rope = self.family.embed(self.model, pixels_BCHW)
                x_BTD = x_BTD.float()
                if 0 in request.tokens:
                    tokens[0] = x_BTD
                for index, block in enumerate(self.blocks[: request.num_blocks]):
                    x_BTD = self.family.run_block(block, x_BTD, grid, rope)
                    if index + 1 in request.tokens:
                        tokens[index + 1] = x_BTD
                    if index in request.maps:
                        maps[index] = self._as_map(self.final_norm(x_BTD), grid)
                    if index in request.raw_maps:
                        raw_maps[index] = self._as_map(x_BTD, grid)
        return LayerTaps(
            image_size=(height, width),
            padding=padding,
            grid=grid,
            num_prefix_tokens=self.num_prefix_tokens,
            tokens=tokens,
            maps=maps,
            raw_maps=raw_maps,
            rope=rope,
            pixels_BCHW=pixels_BCHW if request.pixels else None,
        )

    def _as_map(self, x_BTD: Tensor, grid: tuple[int, int]) -> Tensor:
        # A view: channels stay innermost, which is also how convolutions on a processor read fastest.
        return x_BTD[:, self.num_prefix_tokens :].to(self.precision).unflatten(1, grid).permute(0, 3, 1, 2)


def _zero_outside(pixels_BCHW: Tensor, extent_B2: Tensor) -> Tensor:
    height, width = pixels_BCHW.shape[-2:]
    row_H = torch.arange(height, device=pixels_BCHW.device)
    column_W = torch.arange(width, device=pixels_BCHW.device)
    inside_BHW = (row_H[:, None] < extent_B2[:, 0, None, None]) & (column_W < extent_B2[:, 1, None, None])
    return pixels_BCHW.masked_fill(~inside_BHW[:, None], 0.0)
