"""A vision transformer at another patch size than the one it was trained with.

Detection runs DINOv2 (patch 14) at patch 16, so that the strides of its maps are powers of two (Section 4.2). What
depends on the patch size is resampled once, when the weights are loaded; blocks and norms stay as they are.

Shapes: P patch size, h w the grid that the position embeddings were made for.
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


def other_patch_size(model: Any, name: str, patch_size: int | None, how: Resample) -> int | None:
    """The patch size to resample a model to; None where it is the model's own.

    Raises:
        ConfigError: The model cannot be run at this patch size, or not in this way.
    """
    if patch_size is None or (patch_size, patch_size) == tuple(model.patch_embed.patch_size):
        return None
    if patch_size < 1:
        raise ConfigError(f"--patch-size {patch_size}: a patch has at least one pixel.")
    if isinstance(model, VisionTransformerSAM):
        raise ConfigError(
            f"{name} cannot be run at patch size {patch_size}: the windows and relative positions of a SAM ViT belong "
            "to its own. Leave --patch-size away, or choose a plain or rotary ViT."
        )
    if how == "release" and not (isinstance(model, VisionTransformer) and model.pos_embed is not None):
        raise ConfigError(
            f"--patch-resample release is for plain ViTs with absolute positions, such as DINOv2; {name} has none. "
            "Use --patch-resample 2d."
        )
    return patch_size


@torch.no_grad()
def set_patch_size(model: Any, patch_size: int, how: Resample = "2d") -> None:
    """Resamples the patch embedding, and with ``release`` the position embeddings, of a plain or rotary ViT in place.

    ``2d``: The kernel is resampled by the pseudo-inverse of bicubic resizing (FlexiViT; timm's
    ``resample_patch_embed``), so that a patch enlarged to the new size has the token that it had. A kernel that is
    resized like an image instead answers (new / old)^2 times as strongly, 1.31 from 14 to 16. Positions stay on the
    grid that they were trained on, and every pass resamples them in two dimensions to the image's grid, as it does at
    the model's own patch size.

    ``release``: What the authors' detection does. The kernel is resized bilinearly, like an image. Positions are
    resized by linear interpolation along the raster order (1369 -> 1024 for DINOv2, rows running into one another), and
    are from then on those of a grid of image size / P (32 x 32). From there every pass resamples them in two
    dimensions; the release's does so without anti-aliasing and shifted by its offset of 0.1
    (``--position-resample release``).

    Args:
        model: A model of ``build_model``; may be on the meta device.
        patch_size: P, not the model's own.
        how: ``2d`` or ``release``.
    """
    embed = model.patch_embed
    kernel_D3PP, positions_1ND, (h, w) = embed.proj.weight, model.pos_embed, embed.grid_size
    size = (patch_size, patch_size)
    image_size = (h * patch_size, w * patch_size) if how == "2d" else embed.img_size
    # timm makes a new convolution, whose initial weights are drawn before they are replaced.
    with torch.random.fork_rng(devices=[]):
        model.set_input_size(img_size=image_size, patch_size=size)
    if how == "release":
        embed.proj.weight.copy_(F.interpolate(kernel_D3PP, size=size, mode="bilinear", align_corners=False))
        model.pos_embed.copy_(_along_raster(positions_1ND, positions_1ND.shape[1] - h * w, embed.num_patches))


def _along_raster(positions_1ND: Tensor, num_prefix: int, num_patches: int) -> Tensor:
    prefix, patches = positions_1ND[:, :num_prefix], positions_1ND[:, num_prefix:]
    return torch.cat([prefix, F.interpolate(patches.mT, size=num_patches, mode="linear", align_corners=False).mT], 1)
