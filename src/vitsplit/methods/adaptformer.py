"""AdaptFormer (Chen et al. 2022): a small bottleneck parallel to the MLP of every block of the frozen transformer.

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
from vitsplit.methods.trunk import AdaptedTrunk, TrunkConfig


class AdaptFormerConfig(TrunkConfig):
    """AdaptFormer: trains a small bottleneck parallel to the MLP of every block of the frozen transformer."""

    name: ClassVar[str] = "adaptformer"
    title: ClassVar[str] = "AdaptFormer"
    shards: ClassVar[bool] = False

    bottleneck: Annotated[int, Field(ge=1, le=8192)] = 64
    """Width of the bottlenecks."""
    bottleneck_scale: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    """Scale of the output of the bottlenecks."""

    def build(self, backbone: Backbone, num_maps: int) -> AdaptFormer:
        """See ``MethodConfig.build``."""
        return AdaptFormer(backbone, self)


class AdaptedMlp(nn.Module):
    """``MLP(x) + scale * up(relu(down(x)))``, where ``up`` is initialized to zero.

    ``x`` is normalized, as in Eq. 3 of the paper. If the block has a layer scale (DINOv2), it also scales the output of
    the bottleneck.

    Args:
        mlp: The frozen MLP.
        width: D.
        bottleneck: Channels between ``down`` and ``up``.
        scale: Constant scale of the bottleneck's output.
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


class AdaptFormer(AdaptedTrunk):
    """The frozen transformer with a bottleneck of width b parallel to every MLP: ``L (2 D b + D + b)`` parameters.

    Args:
        backbone: The frozen model, whose weights are shared.
        config: Width and scale of the bottlenecks, and drop path.

    Raises:
        ConfigError: The blocks have no separate MLP.
    """

    def __init__(self, backbone: Backbone, config: AdaptFormerConfig) -> None:
        super().__init__(backbone, config.drop_path)
        for block in self.trunk.blocks:
            mlp = dict(block.named_children()).get("mlp")
            if mlp is None:
                raise ConfigError(
                    f"--method adaptformer: a {type(block).__name__} of {backbone.name} has no separate MLP, which the "
                    "method requires. Choose another backbone, or --method vpt."
                )
            block.mlp = AdaptedMlp(mlp, backbone.width, config.bottleneck, config.bottleneck_scale)
