"""The last layer of the frozen model, as a baseline.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods import MethodConfig
from vitsplit.types import LayerTaps, TapRequest


class FrozenHeadConfig(MethodConfig):
    """The task's default decoder on the frozen last layer: ViT-Split without its two heads."""

    name: ClassVar[str] = "frozen-head"
    title: ClassVar[str] = "frozen last layer"
    reads_frozen: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_maps: int) -> LastLayer:
        """See ``MethodConfig.build``."""
        return LastLayer(backbone)


class LinearProbeConfig(FrozenHeadConfig):
    """Linear probe of the frozen last layer: batch norm and one convolution, or the closest equivalent."""

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "linear probe"
    decoders: ClassVar[tuple[str, ...] | None] = ("probe",)


class LastLayer(nn.Module):
    """The map of the frozen last layer, after the final norm. Has no parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.width = backbone.width
        self.last_layer = backbone.num_layers - 1

    def request(self, *, train: bool) -> TapRequest:
        """The last block's map."""
        return TapRequest(maps=frozenset({self.last_layer}))

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """None."""
        return {}

    def forward(self, taps: LayerTaps) -> Tensor:
        """``map_BDhw``."""
        return taps.maps[self.last_layer]

    def trained_maps(self, taps: LayerTaps, num_layers: int, *, normed: bool) -> tuple[int, list[tuple[str, Tensor]]]:
        """All layers are frozen, and there are no trained maps."""
        return num_layers, []
