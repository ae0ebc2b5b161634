"""Visual prompt tuning, deep (Jia et al. 2022): learned prompt tokens for every block of the frozen transformer.

Shapes: B batch, T tokens (prefix tokens first), N patches, P prompts, L blocks, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.families import RotaryViT, SamViT
from vitsplit.errors import ConfigError
from vitsplit.methods.trunk import AdaptedTrunk, TrunkConfig
from vitsplit.types import LayerTaps


class VptConfig(TrunkConfig):
    """Visual prompt tuning: trains prompt tokens for every block of the frozen transformer."""

    name: ClassVar[str] = "vpt"
    title: ClassVar[str] = "VPT, deep"
    shards: ClassVar[bool] = False

    num_prompts: Annotated[int, Field(ge=1, le=4096)] = 50
    """Number of prompt tokens per block."""
    prompt_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the prompts."""

    def build(self, backbone: Backbone, num_maps: int) -> DeepPrompts:
        """See ``MethodConfig.build``."""
        return DeepPrompts(backbone, self)


class DeepPrompts(AdaptedTrunk):
    """``P`` prompt tokens per block, between prefix tokens and patches; their outputs are dropped.

    ``L P D`` parameters, initialized uniformly within ``sqrt(6 / (3 p^2 + D))`` for patches of p x p pixels.

    Args:
        backbone: The frozen model, whose weights are shared.
        config: Number and dropout of the prompts, and drop path.

    Raises:
        ConfigError: The blocks operate on a grid, without additional tokens.
    """

    def __init__(self, backbone: Backbone, config: VptConfig) -> None:
        if isinstance(backbone.family, SamViT):
            raise ConfigError(
                f"--method vpt: the blocks of {backbone.name} operate on a grid of patches, without prompt tokens. "
                "Choose a plain or rotary ViT, or --method lora or adaptformer."
            )
        super().__init__(backbone, config.drop_path)
        bound = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.width))
        self.prompts_LPD = nn.Parameter(torch.empty(backbone.num_layers, config.num_prompts, backbone.width))
        nn.init.uniform_(self.prompts_LPD, -bound, bound)
        self.dropout = config.prompt_dropout
        if isinstance(backbone.family, RotaryViT):
            for block in self.trunk.blocks:
                attention: Any = dict(block.named_children())["attn"]
                # Like prefix tokens, prompts have no position.
                attention.num_prefix_tokens += config.num_prompts

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw`` of the last block, after the frozen final norm."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        trunk, grid = self.trunk, taps.grid
        x_BTD, rope = trunk.embed(taps.pixels_BCHW)
        for index, prompts_PD in enumerate(self.prompts_LPD):
            prefix, patches_BND = x_BTD.tensor_split([trunk.num_prefix_tokens], dim=1)
            prompts_BPD = F.dropout(prompts_PD.expand(x_BTD.shape[0], -1, -1), self.dropout, self.training)
            x_BTD = trunk.run_block(index, torch.cat([prefix, prompts_BPD, patches_BND], dim=1), grid, rope)
            prefix, _, patches_BND = x_BTD.tensor_split(
                [trunk.num_prefix_tokens, trunk.num_prefix_tokens + len(prompts_PD)], dim=1
            )
            x_BTD = torch.cat([prefix, patches_BND], dim=1)
        return trunk.as_map(trunk.final_norm(x_BTD), grid)
