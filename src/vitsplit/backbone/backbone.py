"""The frozen backbone: one pass from images to taps for any number of heads.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.families import Family, PositionResample, family_of
from vitsplit.errors import ConfigError
from vitsplit.precision import autocast
from vitsplit.types import LayerTaps, Padding, TapRequest


@dataclass(frozen=True)
class BackboneInfo:
    """Metadata of a backbone.

    Attributes:
        name: The name that loads it: short name or timm name.
        timm_name: The timm model, with tag.
        license: License of the weights.
        source: Description of the weights' source.
        weights_hash: SHA-256 of the tensors (names, shapes, bytes), and of resampling and an activation that differs
            from timm's. Identifies a backbone.
        mean: Per-channel mean of pixels in 0..1, for normalization.
        std: Per-channel standard deviation, likewise.
        resampled: Changes by resampling, such as ``patch 16`` or ``positions release``; empty if none.
        former_hash: ``weights_hash`` in earlier versions, which ran this catalog entry with GELU instead of the
            published activation; empty for other backbones.
    """

    name: str
    timm_name: str
    license: str
    source: str
    weights_hash: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampled: str = ""
    former_hash: str = ""

    @property
    def title(self) -> str:
        """Display name including resampling, such as ``dinov2-small (patch 16)``."""
        return f"{self.name} ({self.resampled})" if self.resampled else self.name


class Backbone(nn.Module):
    """A frozen vision transformer: no gradients, always in eval mode.

    Handles normalization, padding to the patch size, position embeddings, prefix tokens, the final norm and precision.

    Args:
        model: A timm model of one of the three families.
        info: Name, license, source, hash and pixel statistics.
        positions: How position embeddings are resampled to other grids, see ``resolve_position_resample``.

    Attributes:
        width: D.
        num_layers: L, the number of blocks.
        patch_size: Pixels per side of a patch.
        num_prefix_tokens: Number of class and register tokens.
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
        """Display name; ``info.name`` is the one that loads it."""
        return self.info.title

    @property
    def blocks(self) -> list[nn.Module]:
        """The L blocks, in order."""
        return list(self.model.blocks)

    @property
    def final_norm(self) -> nn.Module:
        """The norm over tokens after the last block; identity if the model has none."""
        return self.family.final_norm(self.model)

    def train(self, mode: bool = True) -> Self:
        """Keeps eval mode regardless of ``mode``."""
        return super().train(False)

    def set_precision(self, dtype: torch.dtype) -> Self:
        """Sets the compute precision.

        Matrices are stored in ``dtype``; norms, position embeddings and the residual stream stay float32.

        Raises:
            ConfigError: The matrices were already rounded to another precision.
        """
        if self.precision not in (torch.float32, dtype):
            raise ConfigError(
                f"{self.name} was already rounded to {self.precision}. Load it again to compute in {dtype}."
            )
        self.precision = dtype
        for module in self.model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        return self

    def padding(self, height: int, width: int) -> Padding:
        """Centered padding to a multiple of the patch size (512 -> 518 at 14), an odd pixel at the bottom right."""
        extra_height = -height % self.patch_size
        extra_width = -width % self.patch_size
        top, left = extra_height // 2, extra_width // 2
        return Padding(left=left, top=top, right=extra_width - left, bottom=extra_height - top)

    def normalize(self, image_BCHW: Tensor) -> Tensor:
        """Normalizes pixels (uint8, or float in 0..1) to float32; zero is the mean color.

        Raises:
            ConfigError: The tensor is not a batch of three-channel images, uint8 or float.
        """
        is_image = image_BCHW.ndim == 4 and image_BCHW.shape[1] == 3
        if not is_image or not (image_BCHW.dtype == torch.uint8 or image_BCHW.is_floating_point()):
            raise ConfigError(
                f"{self.name} expects RGB images (B, 3, H, W), uint8 in 0..255 or float in 0..1, but got "
                f"{tuple(image_BCHW.shape)} of {image_BCHW.dtype}."
            )
        scaled_BCHW = image_BCHW.float() if image_BCHW.dtype == torch.uint8 else image_BCHW.float() * 255.0
        return (scaled_BCHW - self.mean_C11) / self.std_C11

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor, request: TapRequest, extent_B2: Tensor | None = None) -> LayerTaps:
        """Runs the blocks needed for a request and returns the requested features.

        Args:
            image_BCHW: RGB, uint8 in 0..255 or float in 0..1, of any size.
            request: Requested features; blocks above the highest requested one are not run.
            extent_B2: Content height and width (int64) of each image; pixels below and right of it are zero after
                normalization. None: the whole image.

        Returns:
            Taps, detached from autograd. Token sequences are float32 (residual stream); maps have the backbone's
            precision (``set_precision``).

        Raises:
            ConfigError: The request exceeds the number of blocks, or the input is not a batch of images.
        """
        if request.num_blocks > self.num_layers:
            raise ConfigError(f"{self.name} has {self.num_layers} blocks, but {request.num_blocks} were requested.")
        height, width = image_BCHW.shape[-2:]
        padding = self.padding(height, width)
        pixels_BCHW = self.normalize(image_BCHW)
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
                tokens, maps, raw_maps = run_blocks(
                    self.family, self.model, x_BTD.float(), rope, grid, request, self.precision
                )
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


def run_blocks(
    family: Family,
    model: Any,
    x_BTD: Tensor,
    rope: Tensor | None,
    grid: tuple[int, int],
    request: TapRequest,
    precision: torch.dtype,
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, Tensor]]:
    """Runs the blocks needed for a request on embedded tokens; an exported graph uses it too.

    Args:
        family: The family of the model.
        model: The timm model.
        x_BTD: The embedding, float32.
        rope: Rotary position embedding of a rotary ViT, else None.
        grid: ``(h, w)``.
        request: Requested features.
        precision: Precision of the maps.

    Returns:
        ``tokens``, ``maps`` and ``raw_maps`` of ``LayerTaps``.
    """
    num_prefix, norm = family.num_prefix_tokens(model), family.final_norm(model)

    def as_map(y_BTD: Tensor) -> Tensor:
        return tokens_to_map(y_BTD, num_prefix, grid, precision)

    tokens = {0: x_BTD} if 0 in request.tokens else {}
    maps: dict[int, Tensor] = {}
    raw_maps: dict[int, Tensor] = {}
    for index, block in enumerate(model.blocks[: request.num_blocks]):
        x_BTD = family.run_block(block, x_BTD, grid, rope)
        if index + 1 in request.tokens:
            tokens[index + 1] = x_BTD
        if index in request.maps:
            maps[index] = as_map(norm(x_BTD))
        if index in request.raw_maps:
            raw_maps[index] = as_map(x_BTD)
    return tokens, maps, raw_maps


def tokens_to_map(x_BTD: Tensor, num_prefix: int, grid: tuple[int, int], precision: torch.dtype) -> Tensor:
    """The patches of a token sequence, ``(B, D, h, w)``."""
    # A view in channels-last memory, the fastest format for convolutions on a CPU.
    return x_BTD[:, num_prefix:].to(precision).unflatten(1, grid).permute(0, 3, 1, 2)


def _zero_outside(pixels_BCHW: Tensor, extent_B2: Tensor) -> Tensor:
    height, width = pixels_BCHW.shape[-2:]
    row_H = torch.arange(height, device=pixels_BCHW.device)
    column_W = torch.arange(width, device=pixels_BCHW.device)
    inside_BHW = (row_H[:, None] < extent_B2[:, 0, None, None]) & (column_W < extent_B2[:, 1, None, None])
    return pixels_BCHW.masked_fill(~inside_BHW[:, None], 0.0)
