"""The frozen model's last layer as it is: the reference of every comparison.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods import MethodConfig
from vitsplit.types import LayerTaps, TapRequest


class FrozenHeadConfig(MethodConfig):
    """The task's own decoder on the frozen last layer: ViT-Split without its two heads."""

    name: ClassVar[str] = "frozen-head"
    title: ClassVar[str] = "frozen last layer"
    reads_frozen: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_maps: int) -> LastLayer:
        """See ``MethodConfig.build``."""
        return LastLayer(backbone)


class LinearProbeConfig(FrozenHeadConfig):
    """The least that can be read off the frozen last layer: batch norm and one convolution, or what comes closest."""

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "linear probe"
    decoders: ClassVar[tuple[str, ...] | None] = ("probe",)


class LastLayer(nn.Module):
    """The frozen last layer's map, after the final norm. No parameters."""

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
        """All layers are frozen, and no map follows."""
        return num_layers, []
