"""How each family of vision transformers turns pixels into tokens and runs one block.

The three families of timm that vitsplit knows differ in exactly three things: how positions enter, what a block is
called with, and whether there is a final norm over tokens. A family is a stateless object that holds these differences,
so the frozen backbone and the task head (copies of its blocks) run a block in the same words.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from timm.layers.pos_embed import resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from vitsplit.errors import ConfigError


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


def family_of(model: nn.Module) -> Family:
    """The family of a timm model.

    Raises:
        ConfigError: The model is not a plain, rotary or SAM vision transformer.
    """
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
