"""How each family of vision transformers turns pixels into tokens and runs one block.

The three families of timm that vitsplit knows differ in exactly three things: how positions enter, what a block is
called with, and whether there is a final norm over tokens. A family is a stateless object that holds these differences,
so the frozen backbone and the task head (copies of its blocks) run a block in the same words.

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
    """What the backbone and the task head must know of a family of transformers."""

    name: ClassVar[str]

    def num_prefix_tokens(self, model: Any) -> int:
        """Class and register tokens at the head of the sequence."""
        ...

    def embed(self, model: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch embedding, positions and prefix tokens: ``x_BTD`` and the grid's rotary position data (or None).

        H and W are multiples of the patch size.
        """
        ...

    def run_block(
        self, block: Any, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        """One block, of the backbone or a copy of one.

        ``mask`` says which tokens are attended to, bool and of a shape that broadcasts to (B, heads, T, T); None: all.
        """
        ...

    def final_norm(self, model: Any) -> nn.Module:
        """The norm over tokens after the last block; identity where the model has none."""
        ...


class PlainViT:
    """DINOv2, CLIP, SigLIP, MAE, DeiT, AugReg: absolute positions, blocks of one argument."""

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
        # Models made for average pooling keep the pretrained norm behind the pooling.
        return model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm


class PlainViTWithReleasePositions(PlainViT):
    """A plain ViT whose positions reach other grids as in the release, which has DINOv2's own code.

    Bicubic, without antialiasing, by a factor of ``(h + 0.1) / h0`` per side from the grid ``h0`` of training: the
    added 0.1 kept a rounding error from dropping a row, and moves where the embeddings are sampled. timm resamples to
    the exact size, with antialiasing.
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
    """EVA-02 and DINOv3: rotary positions, handed to every block."""

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
    """Segment Anything's image encoder: windows and relative positions over a (h, w) grid, no prefix, no final norm."""

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
        """See ``Family``. Its windows are its own: there is no mask."""
        return block(x_BTD.unflatten(1, grid)).flatten(1, 2)

    def final_norm(self, model: Any) -> nn.Module:
        """See ``Family``. The neck changes the width and belongs to SAM's own decoder: identity."""
        return nn.Identity()


def position_rule(model: Any, name: str, how: PositionResample) -> PositionResample:
    """How the positions of a model are resampled to other grids: what was asked for, unless both are the same.

    With registers DINOv2's code, which the release runs, resamples as timm does.

    Raises:
        ConfigError: ``release`` was asked for, and the model has no absolute positions or is not a plain ViT.
    """
    if how == "release" and not (isinstance(model, VisionTransformer) and model.pos_embed is not None):
        raise ConfigError(
            f"--position-resample release is for plain ViTs with absolute positions, such as DINOv2; {name} is none. "
            "Use --position-resample timm."
        )
    return "timm" if how == "timm" or model.reg_token is not None else "release"


def family_of(model: nn.Module, positions: PositionResample = "timm") -> Family:
    """The family of a timm model.

    Args:
        model: The model.
        positions: How a plain ViT's positions are resampled to other grids, see ``position_rule``.

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
                "Rotary transformers that learn their frequencies per block are not supported: choose DINOv3 or EVA-02."
            )
        return RotaryViT()
    raise ConfigError(
        f"{type(model).__name__} is not a plain, rotary or SAM vision transformer. "
        "`vitsplit backbones` lists models that work."
    )
