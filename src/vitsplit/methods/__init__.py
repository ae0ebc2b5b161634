"""The methods, by name: heads from the taps of a frozen backbone to the map, or maps, for a decoder.

A method is one file or folder here and one line of ``METHODS``, or an entry point ``vitsplit.methods`` of another
package: a subclass of ``MethodConfig`` with its settings, ``build`` and its capabilities.
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
    """The ``nn.Module`` that a method builds: from taps to one or several maps."""

    width: int
    """Number of channels of the map."""

    def request(self, *, train: bool) -> TapRequest:
        """The taps that the head reads; for inference, only those that its output depends on."""
        ...

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """Trainable parameters with pretrained initial values, which have a separate learning rate.

        Keys are the number of blocks between them and the output, for layer-wise decay; None: not decayed.
        """
        ...

    def __call__(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``fused_BDhw``; or several maps of D channels, the finest first, for decoders that read several."""
        ...


class MethodConfig(Settings):
    """The settings of a method, and its capabilities.

    Attributes:
        name: Its name in settings, on the command line and in ``METHODS``.
        title: Display name.
        location: ``module:class`` of its head, imported when it is built.
        num_maps: The possible numbers of output maps, the default first.
        decoders: Supported decoders; None: all that read the same number of maps.
        reads_frozen: Whether it reads only frozen features, which can be cached.
        patch_size: Default patch size of the backbone in pixels; None: the backbone's own.
        has_layers: Whether it has K_t and prior layers, as varied by studies and chosen by ``--layers auto``.

    Example:
        >>> class ChannelScaleConfig(MethodConfig):  # doctest: +SKIP
        ...     name: ClassVar[str] = "channel-scale"
        ...     title: ClassVar[str] = "channel scale"
        ...     location: ClassVar[str] = "my_package.method:ChannelScale"
        ...     scale: Annotated[float, Field(gt=0, le=10)] = 1.0
    """

    name: ClassVar[str]
    title: ClassVar[str]
    location: ClassVar[str]
    num_maps: ClassVar[tuple[int, ...]] = (1,)
    decoders: ClassVar[tuple[str, ...] | None] = None
    reads_frozen: ClassVar[bool] = False
    patch_size: ClassVar[int | None] = None
    has_layers: ClassVar[bool] = False

    decoder: Annotated[str, Field(min_length=1, max_length=64)] = "auto"
    """Decoder of the task; auto: the default of the method, or the first decoder of the task that fits."""

    @classmethod
    def by_name(cls, name: str) -> type[MethodConfig]:
        """The settings class of a method, by its name.

        Args:
            name: The name in ``METHODS``.

        Returns:
            The subclass.

        Raises:
            ConfigError: There is no method of this name.
        """
        found: type[MethodConfig] = METHODS.load(name)
        return found

    @property
    def shards(self) -> bool:
        """Whether its trainable parameters can be sharded over processes."""
        return True

    def build(self, backbone: Backbone, num_maps: int) -> Any:
        """Builds the untrained head, by default the class at ``location`` with the backbone and these settings.

        Args:
            backbone: The backbone that provides taps, and blocks or weights to copy.
            num_maps: Number of output maps, one of the class attribute ``num_maps``.

        Returns:
            A ``Head``.

        Raises:
            ConfigError: The backbone is not supported; names the method and alternatives.
        """
        module, _, attribute = self.location.partition(":")
        return getattr(importlib.import_module(module), attribute)(backbone, self)

    def without_gate(self, used_layers: tuple[int, ...] | None) -> Self:
        """Settings of a head of the same cost without a learned selection of layers.

        Args:
            used_layers: The layers kept by a trained gate; None: not trained.

        Returns:
            The settings; those of a method without a gate are unchanged.
        """
        return self
