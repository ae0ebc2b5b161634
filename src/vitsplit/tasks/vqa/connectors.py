"""From taps to the map that becomes visual tokens: the connectors, by name.

Shapes: B batch, T tokens (class and register tokens first), N patches, D width, W width of the language model,
h w patch grid.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.families import RotaryViT
from vitsplit.backbone.frozen import Backbone
from vitsplit.engine.config import SplitConfig
from vitsplit.errors import ConfigError
from vitsplit.methods.split.head import SplitHead
from vitsplit.nn.conv_block import ConvBlock
from vitsplit.tasks.vqa.config import Connector, VqaConfig
from vitsplit.types import LayerTaps, TapRequest


class PenultimateLayer(nn.Module):
    """Hands on the frozen map that LLaVA-1.5 uses: the last block but one's, without a norm. Nothing trains."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.width = backbone.width
        self.layer = backbone.num_layers - 2

    def request(self, *, train: bool) -> TapRequest:
        """The last block but one's map."""
        return TapRequest(raw_maps=frozenset({self.layer}))

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw``."""
        return taps.raw_maps[self.layer]


class ReleaseConnector(nn.Module):
    """The head of the authors' release for LLaVA, which is not the paper's in five ways.

    The copied block is the last but one, and sees patches only: class and register tokens are dropped before it. The
    prior is that block's frozen output. Neither passes a norm. The 3x3 convolutions are plain, with a bias. The fusion
    net widens to the language model's width by itself, and ends in GELU: nothing projects after it.

    182,475,776 parameters for CLIP-L and a width of 4096, of which the last convolution has 151 M.

    Args:
        backbone: What the block is copied from: a plain ViT, whose blocks do without a class token.
        language_width: W.

    Raises:
        ConfigError: The backbone's blocks need to know where their tokens lie.
    """

    def __init__(self, backbone: Backbone, language_width: int) -> None:
        super().__init__()
        if isinstance(backbone.family, RotaryViT):
            raise ConfigError(
                f"--connector vitsplit-release drops the class token before a copied block, and those of "
                f"{backbone.name} have positions that count it. Use --connector vitsplit, or a plain ViT."
            )
        self.layer = backbone.num_layers - 2
        self.width = language_width
        self.family = backbone.family
        self.block = copy.deepcopy(backbone.blocks[self.layer]).float().requires_grad_(True)
        self.prior = ConvBlock(backbone.width, backbone.width, deformable=False, plain_bias=True)
        self.fusion = ConvBlock(2 * backbone.width, language_width, deformable=False, plain_bias=True)

    def request(self, *, train: bool) -> TapRequest:
        """The tokens that enter the last block but one, and the map that leaves it."""
        return TapRequest(tokens=frozenset({self.layer}), raw_maps=frozenset({self.layer}))

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The copied block, which is not decayed."""
        return {None: list(self.block.parameters())}

    def forward(self, taps: LayerTaps) -> Tensor:
        """Taps to ``(B, W, h, w)``."""
        patches_BND = taps.tokens[self.layer][:, taps.num_prefix_tokens :]
        patches_BND = self.family.run_block(self.block, patches_BND, taps.grid, None)
        task_BDhw = patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)
        prior_BDhw = self.prior(taps.raw_maps[self.layer])
        return self.fusion(torch.cat([prior_BDhw, task_BDhw], dim=1))

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of this head, by name, with what earlier versions did not have: a bias of zero changes nothing."""
        missing = {
            f"{part}.mix.bias": state[f"{part}.mix.weight"].new_zeros(self.get_parameter(f"{part}.mix.bias").shape)
            for part in ("prior", "fusion")
            if f"{part}.mix.weight" in state and f"{part}.mix.bias" not in state
        }
        return {**state, **missing}


def build_head(config: VqaConfig, split: SplitConfig, backbone: Backbone) -> Any:
    """The connector up to its map."""
    match config.connector:
        case "vitsplit":
            return SplitHead(backbone, split)
        case "vitsplit-release":
            return ReleaseConnector(backbone, config.language_width)
        case "mlp2x" | "linear":
            return PenultimateLayer(backbone)


def build_projection(connector: Connector, width: int, language_width: int) -> nn.Module:
    """What follows: from the map's width to the language model's, for every token by itself.

    Args:
        connector: Its name.
        width: Channels of the map.
        language_width: W.
    """
    match connector:
        case "vitsplit" | "linear":
            return nn.Linear(width, language_width)
        case "mlp2x":
            return nn.Sequential(nn.Linear(width, language_width), nn.GELU(), nn.Linear(language_width, language_width))
        case "vitsplit-release":
            return nn.Identity()


def pool(map_BDhw: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """A map to tokens ``(B, N, D)``, row by row: all of it, or the means over the cells of a coarser grid."""
    if grid is not None:
        map_BDhw = F.adaptive_avg_pool2d(map_BDhw, grid)
    return map_BDhw.flatten(2).transpose(1, 2)
