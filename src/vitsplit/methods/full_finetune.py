"""Full fine-tuning: all of a transformer learns, and a decoder reads its last map, or its last four.

Shapes: B batch, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.trunk import Trunk
from vitsplit.types import LayerTaps, TapRequest


class FullFineTune(nn.Module):
    """A transformer that starts as the frozen one, and its last map or maps after the final norm, which learns too.

    Args:
        backbone: What it starts as.
        num_maps: One map for a task's own decoder. UperNet reads the last four blocks', all at the scale of the patch
            grid, as the parameters of DINOv2-UperNet in Table 1 have it.
        drop_path: Rate of stochastic depth of the last block.
    """

    def __init__(self, backbone: Backbone, *, num_maps: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.trunk = Trunk(backbone, trained=True)
        if drop_path:
            self.trunk.set_drop_path(drop_path)
        self.width = backbone.width
        self.layers = range(backbone.num_layers - num_maps, backbone.num_layers)

    def request(self, *, train: bool) -> TapRequest:
        """The pixels: no block of the frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """All of it."""
        return self.trunk.pretrained_parameters()

    def forward(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``map_BDhw``; several of them, the last block's last, where several were asked for."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        maps = self.trunk.maps(taps.pixels_BCHW, self.layers)
        return maps[0] if len(maps) == 1 else maps
