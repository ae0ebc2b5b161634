"""ViT-Adapter and ViT-CoMer as heads: from the pixels that taps carry to four maps, or to the one of a plain decoder.

Shapes: B batch, D width, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods.pyramid import PATCH_SIZE, PyramidOutput, published_settings
from vitsplit.methods.pyramid_stem import Scales
from vitsplit.methods.trunk import Trunk, TrunkConfig
from vitsplit.methods.two_branches import TwoBranches
from vitsplit.types import LayerTaps, TapRequest

_MIDDLE = 1
"""Which of the three scales has the patches' grid."""


class AdapterConfig(TrunkConfig):
    """ViT-Adapter or ViT-CoMer: four maps (strides 4, 8, 16, 32), or for a decoder of one map that at stride 16."""

    num_maps: ClassVar[tuple[int, ...]] = (4, 1)
    patch_size: ClassVar[int | None] = PATCH_SIZE
    branches: ClassVar[Callable[..., TwoBranches]]

    def build(self, backbone: Backbone, num_maps: int) -> AdapterHead:
        """See ``MethodConfig.build``."""
        return AdapterHead(self.branches, backbone, pyramid=num_maps > 1, drop_path=self.drop_path)


class AdapterHead(nn.Module):
    """A transformer that trains beside a convolutional branch.

    Args:
        kind: Which of the two.
        backbone: What the transformer starts as; its patches have 16 pixels.
        pyramid: All four maps (strides 4, 8, 16, 32), for UperNet; else the one at stride 16, for a task's own decoder,
            without the layers that only the others need.
        drop_path: Rate of stochastic depth; None: as published.

    Raises:
        ConfigError: The backbone does not fit, or no settings were published for its width.
    """

    def __init__(
        self, kind: Callable[..., TwoBranches], backbone: Backbone, *, pyramid: bool, drop_path: float | None = None
    ) -> None:
        super().__init__()
        settings = published_settings(backbone.width)
        if drop_path is not None:
            settings = replace(settings, drop_path=drop_path)
        self.adapter = kind(Trunk(backbone, trained=True), settings=settings)
        self.width = self.adapter.width
        if not pyramid:
            output = self.adapter.output
            assert isinstance(output, PyramidOutput)
            self.adapter.output = MiddleOutput(output)
            self.adapter.stem.widen[0] = nn.Identity()

    def request(self, *, train: bool) -> TapRequest:
        """The pixels: no block of the frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The transformer's."""
        return self.adapter.blocks.trunk.pretrained_parameters()

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of this head, by name, with what earlier versions did not have: a layer scale of one is none."""
        names = [f"adapter.blocks.trunk.model.{name}" for name in self.adapter.blocks.added_scales]
        if any(name in state for name in names):
            return dict(state)
        return {**state, **{name: torch.ones(self.width) for name in names}}

    def forward(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """Four maps ``(B, D, ., .)``, the finest first; or ``map_BDhw``."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        return self.adapter(taps.pixels_BCHW)


class MiddleOutput(nn.Module):
    """The third of the four maps that ``PyramidOutput`` gives, alone.

    Args:
        output: Whose norm it takes over.
    """

    def __init__(self, output: PyramidOutput) -> None:
        super().__init__()
        self.norm = output.norms[_MIDDLE + 1]

    def forward(self, finest_BChw: Tensor, scales: Scales, groups: list[Tensor]) -> Tensor:
        """The map at 1/16: scale and group of blocks that have the patches' grid, see ``PyramidOutput``."""
        return self.norm(scales.maps()[_MIDDLE] + groups[_MIDDLE + 1])
