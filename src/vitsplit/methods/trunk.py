"""A method's own backbone: from pixels to the tokens of every layer, with gradients.

ViT-Split reads features of the frozen backbone. Other methods modify the backbone itself, so each has its own copy,
initialized with the frozen weights.

Shapes: B batch, T tokens (prefix tokens first), D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from timm.layers.drop import DropPath
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods import MethodConfig
from vitsplit.nn.shared_weights import share_weights
from vitsplit.types import LayerTaps, TapRequest


class TrunkConfig(MethodConfig):
    """A method that backpropagates through a whole transformer."""

    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Rate of stochastic depth of the last block (zero at the first); None: the published rate of adapters, else 0."""


_EMBEDDING = ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre")
"""Attributes of a timm model before its first block."""


class Trunk(nn.Module):
    """A copy of a backbone's model.

    Args:
        backbone: The backbone to copy.
        trained: Whether the copy is trainable. A frozen copy shares its weights with the backbone, so it takes no
            memory, and trainable modules can be inserted without modifying the backbone.
        drop_path: See ``set_drop_path``; 0 or None: disabled.

    Attributes:
        width: D.
        num_layers: L.
        patch_size: Pixels per side of a patch.
        num_prefix_tokens: Number of class and register tokens at the start of the sequence.
    """

    def __init__(self, backbone: Backbone, *, trained: bool, drop_path: float | None = None) -> None:
        super().__init__()
        self.model: Any = copy.deepcopy(backbone.model) if trained else share_weights(backbone.model)
        if trained:
            self.model.float().requires_grad_(True)
        self.family = backbone.family
        self.width = backbone.width
        self.num_layers = backbone.num_layers
        self.patch_size = backbone.patch_size
        self.num_prefix_tokens = backbone.num_prefix_tokens
        if drop_path:
            set_drop_path(self.blocks, drop_path)

    @property
    def blocks(self) -> list[nn.Module]:
        """The L blocks, in order."""
        return list(self.model.blocks)

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last block; identity if the model has none."""
        return self.family.final_norm(self.model)

    def grid(self, pixels_BCHW: Tensor) -> tuple[int, int]:
        """``(h, w)`` for pixels with sides divisible by the patch size."""
        return pixels_BCHW.shape[-2] // self.patch_size, pixels_BCHW.shape[-1] // self.patch_size

    def embed(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Embeds normalized, padded pixels: ``x_BTD`` (float32) and the rotary position data of the grid (or None)."""
        x_BTD, rope = self.family.embed(self.model, pixels_BCHW)
        return x_BTD.float(), rope

    def run_block(self, index: int, x_BTD: Tensor, grid: tuple[int, int], rope: Tensor | None) -> Tensor:
        """Runs block ``index`` on a sequence with prefix tokens."""
        return self.family.run_block(self.blocks[index], x_BTD, grid, rope)

    def maps(self, pixels_BCHW: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps of some blocks after the final norm, ``(B, D, h, w)`` each; all blocks are run.

        Args:
            pixels_BCHW: Normalized, padded pixels.
            layers: The blocks (0-based), in ascending order.
        """
        grid = self.grid(pixels_BCHW)
        x_BTD, rope = self.embed(pixels_BCHW)
        maps = []
        for index in range(self.num_layers):
            x_BTD = self.run_block(index, x_BTD, grid, rope)
            if index in layers:
                maps.append(self.as_map(self.final_norm(x_BTD), grid))
        return maps

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """Trainable parameters by the number of blocks between them and the output.

        All blocks follow the embedding. Key None: the rest, such as the final norm.
        """
        embedding = [part for name in _EMBEDDING if (part := getattr(self.model, name, None)) is not None]
        parts = {above: [block] for above, block in enumerate(reversed(self.blocks))} | {self.num_layers: embedding}
        groups = {above: [p for part in modules for p in _trainable(part)] for above, modules in parts.items()}
        grouped = {id(parameter) for group in groups.values() for parameter in group}
        return {**groups, None: [p for p in _trainable(self.model) if id(p) not in grouped]}

    def as_map(self, x_BTD: Tensor, grid: tuple[int, int]) -> Tensor:
        """A sequence without its prefix tokens as ``(B, D, h, w)``."""
        return x_BTD[:, self.num_prefix_tokens :].unflatten(1, grid).permute(0, 3, 1, 2)


def set_drop_path(blocks: Sequence[nn.Module], rate: float) -> None:
    """Enables stochastic depth: at this rate in the last block, decreasing linearly to zero at the first.

    Raises:
        ConfigError: The blocks do not support it.
    """
    for index, block in enumerate(blocks):
        places = [name for name, _ in block.named_children() if name in ("drop_path1", "drop_path2")]
        if not places:
            raise ConfigError(f"--drop-path {rate}: {type(block).__name__} does not support it. Omit the option.")
        for name in places:
            setattr(block, name, DropPath(rate * index / max(len(blocks) - 1, 1)))


class AdaptedTrunk(nn.Module):
    """Base of the methods that insert trainable modules into a frozen transformer: pixels to the map of its last block.

    Args:
        backbone: The frozen model, whose weights are shared.
        drop_path: See ``Trunk``.
    """

    def __init__(self, backbone: Backbone, drop_path: float | None) -> None:
        super().__init__()
        self.trunk = Trunk(backbone, trained=False, drop_path=drop_path)
        self.width = backbone.width
        self.last_layer = backbone.num_layers - 1

    def request(self, *, train: bool) -> TapRequest:
        """Pixels only: no block of the frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None: the inserted modules are trained from scratch."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw`` of the last block, after the frozen final norm."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        return self.trunk.maps(taps.pixels_BCHW, [self.last_layer])[0]


def _trainable(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    parameters = [part] if isinstance(part, nn.Parameter) else part.parameters()
    return [parameter for parameter in parameters if parameter.requires_grad]
