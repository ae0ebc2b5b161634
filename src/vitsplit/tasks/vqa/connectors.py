"""From taps to the map that becomes visual tokens: connectors that are not a method's, and what follows the map.

Shapes: B batch, T tokens (class and register tokens first), N patches, D width, W width of the language model,
h w patch grid.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.families import RotaryViT
from vitsplit.errors import ConfigError
from vitsplit.nn.conv_block import ConvBlock
from vitsplit.tasks.vqa.config import Connector, VqaConfig
from vitsplit.types import LayerTaps, TapRequest


class PenultimateLayer(nn.Module):
    """The frozen map used by LLaVA-1.5: output of the second-to-last block, without norm. No trainable parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.width = backbone.width
        self.layer = backbone.num_layers - 2

    def request(self, *, train: bool) -> TapRequest:
        """The map of the second-to-last block."""
        return TapRequest(raw_maps=frozenset({self.layer}))

    def describe_layers(self) -> tuple[int, tuple[int, ...]]:
        """No copied block, and the frozen layer that is read."""
        return 0, (self.layer,)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw``."""
        return taps.raw_maps[self.layer]


class ReleaseConnector(nn.Module):
    """The head of the authors' LLaVA release, which differs from the paper in five ways.

    The copied block is the second-to-last one and takes patch tokens only, without class and register tokens. The
    prior is the frozen output of that block. Neither is normalized. The 3x3 convolutions are plain, with bias. The
    fusion net outputs the language model's width and ends in GELU, without a projection after it.

    182,475,776 parameters for CLIP-L and a width of 4096, 151 M of them in the last convolution.

    Args:
        backbone: The backbone, a plain ViT, whose blocks work without class token.
        language_width: W.

    Raises:
        ConfigError: The backbone is a rotary ViT, whose blocks depend on token positions.
    """

    def __init__(self, backbone: Backbone, language_width: int) -> None:
        super().__init__()
        if isinstance(backbone.family, RotaryViT):
            raise ConfigError(
                f"--connector vitsplit-release omits the class token, which the blocks of {backbone.name} need for "
                "their positions. Use --connector vitsplit, or a plain ViT."
            )
        self.layer = backbone.num_layers - 2
        self.width = language_width
        self.family = backbone.family
        self.block = copy.deepcopy(backbone.blocks[self.layer]).float().requires_grad_(True)
        self.prior = ConvBlock(backbone.width, backbone.width, deformable=False, plain_bias=True)
        self.fusion = ConvBlock(2 * backbone.width, language_width, deformable=False, plain_bias=True)

    def request(self, *, train: bool) -> TapRequest:
        """Input tokens and output map of the second-to-last block."""
        return TapRequest(tokens=frozenset({self.layer}), raw_maps=frozenset({self.layer}))

    def describe_layers(self) -> tuple[int, tuple[int, ...]]:
        """The copied block, and the frozen layer that is read."""
        return 1, (self.layer,)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The copied block, without layer decay."""
        return {None: list(self.block.parameters())}

    def forward(self, taps: LayerTaps) -> Tensor:
        """Taps to ``(B, W, h, w)``."""
        patches_BND = taps.tokens[self.layer][:, taps.num_prefix_tokens :]
        patches_BND = self.family.run_block(self.block, patches_BND, taps.grid, None)
        task_BDhw = patches_BND.unflatten(1, taps.grid).permute(0, 3, 1, 2)
        prior_BDhw = self.prior(taps.raw_maps[self.layer])
        return self.fusion(torch.cat([prior_BDhw, task_BDhw], dim=1))

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds the biases that earlier versions did not have (zeros) to a state of this head."""
        missing = {
            f"{part}.mix.bias": state[f"{part}.mix.weight"].new_zeros(self.get_parameter(f"{part}.mix.bias").shape)
            for part in ("prior", "fusion")
            if f"{part}.mix.weight" in state and f"{part}.mix.bias" not in state
        }
        return {**state, **missing}


def build_head(config: VqaConfig, backbone: Backbone) -> nn.Module:
    """What a connector that is not a method's has in a method's place, up to its map."""
    if config.connector == "vitsplit-release":
        return ReleaseConnector(backbone, config.language_width)
    return PenultimateLayer(backbone)


def build_projection(connector: Connector, width: int, language_width: int) -> nn.Module:
    """The projection of a connector, from the map's width to the language model's.

    Args:
        connector: Name of the connector.
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
    """Converts a map to tokens ``(B, N, D)`` in row-major order, after average pooling to ``grid`` if given."""
    if grid is not None:
        map_BDhw = F.adaptive_avg_pool2d(map_BDhw, grid)
    return map_BDhw.flatten(2).transpose(1, 2)
