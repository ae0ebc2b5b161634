"""The methods, by name: ways from the taps of a frozen backbone to the map, or the maps, that a decoder reads.

A method is one file or folder here and one line of ``METHODS``, or an entry point ``vitsplit.methods`` of another
package: a subclass of ``MethodConfig`` with its settings, with ``build``, and with what it can do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self

from pydantic import Field

from vitsplit.config import Settings
from vitsplit.extensions import Table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitsplit.backbone.backbone import Backbone
    from vitsplit.types import LayerTaps, TapRequest

METHODS = Table(
    "method",
    "vitsplit.methods",
    {
        "vitsplit": "vitsplit.methods.split.config:SplitConfig",
        "linear-probe": "vitsplit.methods.last_layer:LinearProbeConfig",
        "frozen-head": "vitsplit.methods.last_layer:FrozenHeadConfig",
        "full-finetune": "vitsplit.methods.finetune:FullFineTuneConfig",
        "upernet": "vitsplit.methods.finetune:UperNetConfig",
        "lora": "vitsplit.methods.lora:LoraConfig",
        "vpt": "vitsplit.methods.vpt:VptConfig",
        "adaptformer": "vitsplit.methods.adaptformer:AdaptFormerConfig",
        "vit-adapter": "vitsplit.methods.vit_adapter:ViTAdapterConfig",
        "vit-comer": "vitsplit.methods.vit_comer:ViTCoMerConfig",
    },
)


class Head(Protocol):
    """What a method builds, always an ``nn.Module``: a way from taps to a map, or to several."""

    width: int
    """Channels of the map."""

    def request(self, *, train: bool) -> TapRequest:
        """What the head reads of the backbone: in training, or else only what its output depends on."""
        ...

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """Trainable parameters that start pretrained, which learn at a rate of their own; all others are new.

        By the number of blocks between them and the output, for layer decay; None: not decayed.
        """
        ...

    def __call__(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``fused_BDhw``; or several maps of D channels, the finest first, for decoders that read so many."""
        ...


class MethodConfig(Settings):
    """The settings of a method, and what it can do.

    Attributes:
        name: What it is called in settings, on the command line and in ``METHODS``.
        title: Its name for people.
        location: ``module:class`` of its head, which is imported when one is built.
        num_maps: How many maps it can deliver, the usual number first.
        decoders: The decoders that it goes with; None: every one that reads as many maps.
        reads_frozen: Whether it reads nothing but what the frozen backbone computes, which can then be cached.
        shards: Whether its trainable parameters are worth being spread over processes.
        patch_size: The patch size in pixels that it wants of a backbone where none is set; None: the backbone's own.
        has_layers: Whether it has K_t and prior layers, which studies vary and ``--layers auto`` chooses.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    location: ClassVar[str]
    num_maps: ClassVar[tuple[int, ...]] = (1,)
    decoders: ClassVar[tuple[str, ...] | None] = None
    reads_frozen: ClassVar[bool] = False
    shards: ClassVar[bool] = True
    patch_size: ClassVar[int | None] = None
    has_layers: ClassVar[bool] = False

    decoder: Annotated[str, Field(min_length=1, max_length=64)] = "auto"
    """Which of the task's decoders reads its maps; auto: the method's usual one, else the task's first that fits."""

    @classmethod
    def by_name(cls, name: str) -> type[MethodConfig]:
        """The settings class of a method, by its name.

        Raises:
            ConfigError: There is none.
        """
        found: type[MethodConfig] = METHODS.load(name)
        return found

    def build(self, backbone: Backbone, num_maps: int) -> Any:
        """The untrained head: that at ``location``, of a backbone and these settings, unless a method says otherwise.

        Args:
            backbone: What its taps come from, and what blocks or weights are copied from.
            num_maps: How many maps it is to deliver, one of ``num_maps``.

        Returns:
            A ``Head``.

        Raises:
            ConfigError: The backbone does not fit; names the method and what to choose.
        """
        module, _, attribute = self.location.partition(":")
        return getattr(importlib.import_module(module), attribute)(backbone, self)

    def without_gate(self, used_layers: tuple[int, ...] | None) -> Self:
        """Settings of a head that costs the same and has no learned selection of layers.

        Args:
            used_layers: The layers that a trained gate keeps; None: not trained.
        """
        return self
