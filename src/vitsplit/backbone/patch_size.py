"""Runs a vision transformer at another patch size than it was trained with.

Detection runs DINOv2 (patch 14) at patch 16, so that the strides of its maps are powers of two (Section 4.2). Patch
and position embeddings are resampled once, after loading; blocks and norms are unchanged.

Shapes: P patch size, h w grid of the position embeddings.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor

from vitsplit.errors import ConfigError

Resample = Literal["2d", "release"]


def resolve_patch_size(model: Any, name: str, patch_size: int | None, how: Resample) -> int | None:
    """The patch size to resample a model to; None if the model already has it.

    Raises:
        ConfigError: The model cannot be resampled to this patch size, or not with this method.
    """
    if patch_size is None or (patch_size, patch_size) == tuple(model.patch_embed.patch_size):
        return None
    if patch_size < 1:
        raise ConfigError(f"--patch-size {patch_size}: must be at least 1.")
    if isinstance(model, VisionTransformerSAM):
        raise ConfigError(
            f"{name} cannot be run at patch size {patch_size}: window sizes and relative positions of SAM ViTs are "
            "fixed. Omit --patch-size, or choose a plain or rotary ViT."
        )
    if how == "release" and not (isinstance(model, VisionTransformer) and model.pos_embed is not None):
        raise ConfigError(
            f"--patch-resample release is for plain ViTs with absolute positions, such as DINOv2; {name} has none. "
            "Use --patch-resample 2d."
        )
    return patch_size


@torch.no_grad()
def set_patch_size(model: Any, patch_size: int, how: Resample = "2d") -> None:
    """Resamples the patch embedding (and with ``release`` the position embeddings) of a plain or rotary ViT in place.

    ``2d``: The kernel is resampled by the pseudo-inverse of bicubic resizing (FlexiViT; timm's
    ``resample_patch_embed``), so that a patch enlarged to the new size keeps its token. Resizing the kernel like an
    image would scale its output by (new / old)^2, 1.31 from 14 to 16. Position embeddings keep their training grid;
    every pass resamples them in two dimensions to the image's grid, as at the original patch size.

    ``release``: As in the authors' detection code. The kernel is resized bilinearly, like an image. Position
    embeddings are linearly interpolated along the flattened grid (1369 -> 1024 for DINOv2, mixing rows) to a grid of
    image size / P (32 x 32), from which every pass resamples them in two dimensions; the release does so without
    antialiasing and with an offset of 0.1 (``--position-resample release``).

    Args:
        model: A model of ``build_model``; may be on the meta device.
        patch_size: P, different from the model's.
        how: ``2d`` or ``release``.
    """
    embed = model.patch_embed
    kernel_D3PP, positions_1ND, (h, w) = embed.proj.weight, model.pos_embed, embed.grid_size
    size = (patch_size, patch_size)
    image_size = (h * patch_size, w * patch_size) if how == "2d" else embed.img_size
    # timm creates a new convolution, which draws random initial weights.
    with torch.random.fork_rng(devices=[]):
        model.set_input_size(img_size=image_size, patch_size=size)
    if how == "release":
        embed.proj.weight.copy_(F.interpolate(kernel_D3PP, size=size, mode="bilinear", align_corners=False))
        model.pos_embed.copy_(_along_raster(positions_1ND, positions_1ND.shape[1] - h * w, embed.num_patches))


def _along_raster(positions_1ND: Tensor, num_prefix: int, num_patches: int) -> Tensor:
    prefix, patches = positions_1ND[:, :num_prefix], positions_1ND[:, num_prefix:]
    return torch.cat([prefix, F.interpolate(patches.mT, size=num_patches, mode="linear", align_corners=False).mT], 1)
