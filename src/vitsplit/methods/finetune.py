"""Full fine-tuning: all layers of a transformer are trained, and a decoder reads its last map, or last four.

Shapes: B batch, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.trunk import Trunk, TrunkConfig
from vitsplit.types import LayerTaps, TapRequest


class FullFineTuneConfig(TrunkConfig):
    """Full fine-tuning: trains the whole transformer, with the task's default decoder on its last map."""

    name: ClassVar[str] = "full-finetune"
    title: ClassVar[str] = "full fine-tuning"

    def build(self, backbone: Backbone, num_maps: int) -> FullFineTune:
        """See ``MethodConfig.build``."""
        return FullFineTune(backbone, num_maps=num_maps, drop_path=self.drop_path)


class UperNetConfig(FullFineTuneConfig):
    """Full fine-tuning with UperNet on the last four maps (DINOv2-UperNet in Table 1)."""

    name: ClassVar[str] = "upernet"
    title: ClassVar[str] = "full fine-tuning with UperNet"
    num_maps: ClassVar[tuple[int, ...]] = (4,)
    decoders: ClassVar[tuple[str, ...] | None] = ("upernet",)


class FullFineTune(nn.Module):
    """A trainable copy of the transformer, which outputs its last map or maps after the trainable final norm.

    Args:
        backbone: The model to copy.
        num_maps: One map for a task's default decoder, or four for UperNet: the maps of the last blocks, all at the
            scale of the patch grid, consistent with the parameters of DINOv2-UperNet in Table 1.
        drop_path: Rate of stochastic depth of the last block.
    """

    def __init__(self, backbone: Backbone, *, num_maps: int = 1, drop_path: float | None = None) -> None:
        super().__init__()
        self.trunk = Trunk(backbone, trained=True, drop_path=drop_path)
        self.width = backbone.width
        self.layers = range(backbone.num_layers - num_maps, backbone.num_layers)

    def request(self, *, train: bool) -> TapRequest:
        """Pixels only: no block of the frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """All parameters."""
        return self.trunk.pretrained_parameters()

    def forward(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``map_BDhw``; or several, in the order of the blocks."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        maps = self.trunk.maps(taps.pixels_BCHW, self.layers)
        return maps[0] if len(maps) == 1 else maps

    def trained_maps(self, taps: LayerTaps, num_layers: int, *, normed: bool) -> tuple[int, list[tuple[str, Tensor]]]:
        """Zero frozen layers, and the map of every block, after the final norm if ``normed``."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        trunk = self.trunk
        x_BTD, rope = trunk.embed(taps.pixels_BCHW)
        found = []
        for index in range(num_layers):
            x_BTD = trunk.run_block(index, x_BTD, taps.grid, rope)
            tokens_BTD = trunk.final_norm(x_BTD) if normed else x_BTD
            found.append((f"tuned {index}", trunk.as_map(tokens_BTD, taps.grid)))
        return 0, found
