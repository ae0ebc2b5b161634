"""AdaptFormer (Chen et al. 2022): a small bottleneck beside the MLP of every block of the frozen transformer.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.methods.trunk import Trunk, TrunkConfig
from vitsplit.types import LayerTaps, TapRequest


class AdaptFormerConfig(TrunkConfig):
    """AdaptFormer: a small bottleneck is trained beside the MLP of every block of the frozen transformer."""

    name: ClassVar[str] = "adaptformer"
    title: ClassVar[str] = "AdaptFormer"
    shards: ClassVar[bool] = False

    bottleneck: Annotated[int, Field(ge=1, le=8192)] = 64
    """Width of the layer beside every MLP."""
    bottleneck_scale: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    """What its output is scaled by."""

    def build(self, backbone: Backbone, num_maps: int) -> AdaptFormer:
        """See ``MethodConfig.build``."""
        return AdaptFormer(backbone, self)


class AdaptedMlp(nn.Module):
    """``MLP(x) + scale * up(relu(down(x)))``, where up starts as zero.

    ``x`` has passed the block's norm, as in the paper's Eq. 3. Where a block scales its MLP's output (DINOv2), the
    bottleneck's is scaled with it.

    Args:
        mlp: The frozen MLP.
        width: D.
        bottleneck: Channels between down and up.
        scale: Fixed.
    """

    def __init__(self, mlp: nn.Module, width: int, bottleneck: int, scale: float) -> None:
        super().__init__()
        self.mlp = mlp
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        return self.mlp(x) + self.scale * self.up(F.relu(self.down(x)))


class AdaptFormer(nn.Module):
    """The frozen transformer with a bottleneck beside every MLP: ``L (2 D b + D + b)`` parameters of width b.

    Args:
        backbone: The frozen model, whose weights are in memory once.
        config: Width and scale of the bottlenecks, and drop path.

    Raises:
        ConfigError: The blocks have no MLP of their own.
    """

    def __init__(self, backbone: Backbone, config: AdaptFormerConfig) -> None:
        super().__init__()
        self.trunk = Trunk(backbone, trained=False, drop_path=config.drop_path)
        self.width = backbone.width
        self.last_layer = backbone.num_layers - 1
        for block in self.trunk.blocks:
            mlp = dict(block.named_children()).get("mlp")
            if mlp is None:
                raise ConfigError(
                    f"--method adaptformer: a {type(block).__name__} of {backbone.name} has no MLP beside which a "
                    "bottleneck could be. Choose another backbone, or --method vpt."
                )
            block.mlp = AdaptedMlp(mlp, backbone.width, config.bottleneck, config.bottleneck_scale)

    def request(self, *, train: bool) -> TapRequest:
        """The pixels: no block of the bare frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None: the bottlenecks are new."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw`` of the last block, after the frozen final norm."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        return self.trunk.maps(taps.pixels_BCHW, [self.last_layer])[0]
