"""The last layer of the frozen model, as a baseline: ViT-Split without its heads."""

from __future__ import annotations

from typing import ClassVar

from vitsplit.backbone.backbone import Backbone
from vitsplit.methods import MethodConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead


class FrozenHeadConfig(MethodConfig):
    """The task's default decoder on the frozen last layer: ViT-Split with K_t = 0, without its prior head."""

    name: ClassVar[str] = "frozen-head"
    title: ClassVar[str] = "frozen last layer"
    reads_frozen: ClassVar[bool] = True

    def build(self, backbone: Backbone, num_maps: int) -> SplitHead:
        """See ``MethodConfig.build``."""
        return SplitHead(backbone, SplitConfig(num_tuned_layers=0, prior_head=False, fusion=False))


class LinearProbeConfig(FrozenHeadConfig):
    """Linear probe of the frozen last layer: batch norm and one convolution, or the closest equivalent."""

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "linear probe"
    decoders: ClassVar[tuple[str, ...] | None] = ("probe",)
