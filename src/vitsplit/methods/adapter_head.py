"""ViT-Adapter and ViT-CoMer as heads: from the pixels in the taps to four maps, or one map for a plain decoder.

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
"""Index of the scale with the patch grid."""


class AdapterConfig(TrunkConfig):
    """ViT-Adapter or ViT-CoMer: four maps (strides 4, 8, 16, 32), or only stride 16 for a single-map decoder."""

    num_maps: ClassVar[tuple[int, ...]] = (4, 1)
    patch_size: ClassVar[int | None] = PATCH_SIZE
    branches: ClassVar[Callable[..., TwoBranches]]

    def build(self, backbone: Backbone, num_maps: int) -> AdapterHead:
        """See ``MethodConfig.build``."""
        return AdapterHead(self.branches, backbone, pyramid=num_maps > 1, drop_path=self.drop_path)


class AdapterHead(nn.Module):
    """A trainable transformer with a convolutional branch.

    Args:
        kind: ``ViTAdapter`` or ``ViTCoMer``.
        backbone: The initial transformer, with patches of 16 pixels.
        pyramid: Output all four maps (strides 4, 8, 16, 32), for UperNet; otherwise only stride 16, without the layers
            that only the other maps need.
        drop_path: Rate of stochastic depth; None: as published.

    Raises:
        ConfigError: The backbone is not supported, or there are no published settings for its width.
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
        """Pixels only: no block of the frozen model is run."""
        return TapRequest(pixels=True)

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """The parameters of the transformer."""
        return self.adapter.blocks.trunk.pretrained_parameters()

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds layer scales of one to a state dict of an earlier version, which had none."""
        names = [f"adapter.blocks.trunk.model.{name}" for name in self.adapter.blocks.added_scales]
        if any(name in state for name in names):
            return dict(state)
        return {**state, **{name: torch.ones(self.width) for name in names}}

    def forward(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """Four maps ``(B, D, ., .)``, the finest first; or ``map_BDhw``."""
        assert taps.pixels_BCHW is not None, "the request asks for pixels"
        return self.adapter(taps.pixels_BCHW)


class MiddleOutput(nn.Module):
    """Only the third of the four maps of ``PyramidOutput``.

    Args:
        output: The output whose norm is reused.
    """

    def __init__(self, output: PyramidOutput) -> None:
        super().__init__()
        self.norm = output.norms[_MIDDLE + 1]

    def forward(self, finest_BChw: Tensor, scales: Scales, groups: list[Tensor]) -> Tensor:
        """The map at 1/16, see ``PyramidOutput``."""
        return self.norm(scales.maps()[_MIDDLE] + groups[_MIDDLE + 1])
