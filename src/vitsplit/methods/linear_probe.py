"""The linear probe: how good the frozen model's last layer is as it stands. The yardstick of every comparison.

Shapes: B batch, D width, h w patch grid, K outputs.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.nn.pointwise import Pointwise
from vitsplit.types import LayerTaps, TapRequest


class LastLayer(nn.Module):
    """Hands the frozen last layer's map (after the final norm) to the decoder. Nothing trains."""

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


class LinearDecoder(nn.Module):
    """Batch norm and a 1x1 convolution: (B, D, h, w) to (B, K, h, w)."""

    def __init__(self, width: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.classify = Pointwise(width, num_outputs)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """``map_BDhw`` to logits."""
        return self.classify(self.norm(map_BDhw))
