"""Token embedding and block call of each family of vision transformers.

The three supported timm families differ in position embeddings, block arguments, and final norm. A family is a
stateless object for these differences, used by both the frozen backbone and the task head (copies of its blocks).

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from vitsplit.errors import ConfigError

PositionResample = Literal["timm", "release"]


class Family(Protocol):
    """Interface of a family of vision transformers."""

    name: ClassVar[str]

    def num_prefix_tokens(self, model: Any) -> int:
        """Number of class and register tokens at the start of the sequence."""
        ...

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch embedding, positions and prefix tokens: ``x_BTD`` and the grid's rotary position embedding (or None).

        H and W are multiples of the patch size.
        """
        ...

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """Runs one block of the backbone, or a copy of one.

        ``mask`` is a boolean attention mask that broadcasts to (B, heads, T, T), True for attended tokens; None: all.
        """
        ...

    def final_norm(self, model: Any) -> nn.Module:
        """The norm over tokens after the last block; identity where the model has none."""
        ...


class PlainViT:
    """DINOv2, CLIP, SigLIP, MAE, DeiT, AugReg: absolute positions, blocks called with tokens only."""

    name: ClassVar[str] = "plain"

    def num_prefix_tokens(self, model: Any) -> int:
        """See ``Family``."""
        return int(model.num_prefix_tokens)

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Family``."""
        return model.norm_pre(model._pos_embed(model.patch_embed(pixels_BCHW))), None

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """See ``Family``."""
        return block(x_BTD, attn_mask=mask)

    def final_norm(self, model: Any) -> nn.Module:
        """See ``Family``."""
        # In timm's models for average pooling, the pretrained norm is fc_norm.
        return model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm


class PlainViTWithReleasePositions(PlainViT):
    """A plain ViT with the release's interpolation of position embeddings, which is DINOv2's code.

    Bicubic, without antialiasing, with scale factor ``(h + 0.1) / h0`` per side from the training grid ``h0``: the
    offset of 0.1 avoids a rounding error but shifts the sampling positions. timm resamples to the exact size with
    antialiasing.
    """

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Family``."""
        x_BhwD = model.patch_embed(pixels_BCHW)
        prefix = [
            token_1PD.expand(len(x_BhwD), -1, -1)
            for token_1PD in (model.cls_token, model.reg_token)
            if token_1PD is not None
        ]
        position_1TD = self._positions(model, (x_BhwD.shape[1], x_BhwD.shape[2]))
        x_BTD = x_BhwD.flatten(1, 2)
        if model.no_embed_class:
            x_BTD = torch.cat([*prefix, x_BTD + position_1TD], dim=1)
        else:
            x_BTD = torch.cat([*prefix, x_BTD], dim=1) + position_1TD
        return model.norm_pre(x_BTD), None

    def _positions(self, model: Any, grid: tuple[int, int]) -> Tensor:
        height, width = model.patch_embed.grid_size
        if grid == (height, width):
            return cast(Tensor, model.pos_embed)
        num_prefix = model.pos_embed.shape[1] - height * width
        prefix_1PD, patches_1ND = model.pos_embed.split([num_prefix, height * width], dim=1)
        patches_1Dhw = F.interpolate(
            patches_1ND.unflatten(1, (height, width)).permute(0, 3, 1, 2),
            scale_factor=((grid[0] + 0.1) / height, (grid[1] + 0.1) / width),
            mode="bicubic",
        )
        return torch.cat([prefix_1PD, patches_1Dhw.flatten(2).mT], dim=1)


class RotaryViT:
    """EVA-02 and DINOv3: rotary position embeddings, passed to every block."""

    name: ClassVar[str] = "rotary"

    def num_prefix_tokens(self, model: Any) -> int:
        """See ``Family``."""
        return int(model.num_prefix_tokens)

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Family``."""
        tokens_BTD, rope = model._pos_embed(model.patch_embed(pixels_BCHW))
        return model.norm_pre(tokens_BTD), rope

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """See ``Family``."""
        return block(x_BTD, rope=rope, attn_mask=mask)

    def final_norm(self, model: Any) -> nn.Module:
        """See ``Family``."""
        return model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm


class SamViT:
    """Segment Anything's encoder: window attention with relative positions, no prefix tokens, no final norm."""

    name: ClassVar[str] = "sam"

    def num_prefix_tokens(self, model: Any) -> int:
        """See ``Family``."""
        return 0

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Family``."""
        x_BhwD = model.patch_embed(pixels_BCHW)
        if model.pos_embed is not None:
            x_BhwD = x_BhwD + resample_abs_pos_embed_nhwc(model.pos_embed, x_BhwD.shape[1:3])
        return model.norm_pre(x_BhwD).flatten(1, 2), None

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """See ``Family``. ``mask`` is not supported."""
        return block(x_BTD.unflatten(1, grid)).flatten(1, 2)

    def final_norm(self, model: Any) -> nn.Module:
        """See ``Family``. Identity: the neck changes the width and belongs to SAM's decoder."""
        return nn.Identity()


def resolve_position_resample(model: Any, name: str, how: PositionResample) -> PositionResample:
    """Resolves how position embeddings are resampled to other grids.

    Returns ``timm`` for models with registers, for which DINOv2's code (used by the release) resamples as timm does.

    Raises:
        ConfigError: ``release`` for a model without absolute positions or that is not a plain ViT.
    """
    if how == "release" and not (isinstance(model, VisionTransformer) and model.pos_embed is not None):
        raise ConfigError(
            f"--position-resample release is for plain ViTs with absolute positions, such as DINOv2, not for {name}. "
            "Use --position-resample timm."
        )
    return "timm" if how == "timm" or model.reg_token is not None else "release"


def family_of(model: nn.Module, positions: PositionResample = "timm") -> Family:
    """The family of a timm model.

    Args:
        model: The model.
        positions: How a plain ViT's position embeddings are resampled, see ``resolve_position_resample``.

    Raises:
        ConfigError: The model is not a plain, rotary or SAM vision transformer.
    """
    if positions == "release":
        return PlainViTWithReleasePositions()
    if isinstance(model, VisionTransformer):
        return PlainViT()
    if isinstance(model, VisionTransformerSAM):
        return SamViT()
    if isinstance(model, Eva):
        if model.rope_mixed:
            raise ConfigError(
                "Rotary transformers with learned frequencies per block are not supported. Choose DINOv3 or EVA-02."
            )
        return RotaryViT()
    raise ConfigError(
        f"{type(model).__name__} is not a plain, rotary or SAM vision transformer. `vitsplit backbones` lists "
        "supported models."
    )
