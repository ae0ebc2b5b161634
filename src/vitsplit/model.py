"""The trainable model of a run: heads by name, each a method (taps to map) and a task's decoder (map to output).

The frozen backbone is separate: it has no gradients, is not in checkpoints, and is not wrapped for data-parallel
training. Heads share the taps of its forward pass, and no weights.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.errors import ConfigError
from vitsplit.nn.familiarity import Familiarity
from vitsplit.nn.initialization import SkipMetaInitialization
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.train_config import TrainConfig
from vitsplit.types import LayerTaps, TapRequest


class Head(nn.Module):
    """Method and decoder, without the backbone: the contents of a bundle.

    Args:
        method: A module from ``MethodConfig.build``. Its attribute is ``head``, as in tensor names of bundles.
        decoder: Map to the task's output.
        familiarity: What the task compares frozen features with in prediction; None: nothing.
    """

    def __init__(self, method: Any, decoder: nn.Module, familiarity: Familiarity | None = None) -> None:
        super().__init__()
        self.head = method
        self.decoder = decoder
        self.familiarity = familiarity

    def request(self, *, train: bool) -> TapRequest:
        """The backbone features that the method needs, and in prediction those for ``familiarity``."""
        request: TapRequest = self.head.request(train=train)
        if self.familiarity is not None and not train:
            request |= TapRequest(maps=frozenset({self.familiarity.layer}))
        return request

    def trainable_state(self) -> dict[str, Tensor]:
        """The tensors of a bundle or a checkpoint: trainable parameters and buffers, by name."""
        # Tied parameters (such as a language model's embeddings and output layer) have their first name only.
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        saved = trained | {name for name, _ in self.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in saved}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads the output of ``trainable_state``, of this or an earlier version.

        Raises:
            KeyError: Names are missing or unexpected; the message lists them.
        """
        state = self.upgraded(state)
        expected = self.trainable_state().keys()
        missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unexpected:
            raise KeyError(f"missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
        self.load_state_dict(state, strict=False)

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Converts a state saved by an earlier version to the current tensor names."""
        state = {self.current_name(name): tensor for name, tensor in state.items()}
        upgrade = getattr(self.head, "upgraded", None)
        if upgrade is None:
            return state
        mine = {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}
        return {**state, **{f"head.{name}": tensor for name, tensor in upgrade(mine).items()}}

    def current_name(self, name: str) -> str:
        """The current name of a tensor that may have been saved by an earlier version."""
        if name.startswith("head."):
            for former, current in getattr(self.head, "former_names", {}).items():
                name = name.replace(former, current)
        return name

    def forward(self, taps: LayerTaps, targets: Any = None) -> Any:
        """Taps to the decoder's output.

        Args:
            taps: Features as requested by ``request``.
            targets: Output of ``Task.targets`` in training; None for prediction, and for decoders without targets.
        """
        fused_BDhw = self.head(taps)
        return self.decoder(fused_BDhw) if targets is None else self.decoder(fused_BDhw, targets)


class Model(nn.Module):
    """All heads of a run: the module that is trained, and saved in checkpoints.

    Args:
        heads: The heads, by name.

    Raises:
        ConfigError: As ``check_names``.
    """

    heads: Mapping[str, Head]

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        check_names(heads)
        self.heads = nn.ModuleDict(heads)  # type: ignore[assignment]  # has a mapping's methods

    def request(self, *, train: bool) -> TapRequest:
        """The backbone features that the heads need: the union of their requests."""
        return functools.reduce(operator.or_, (head.request(train=train) for head in self.heads.values()))

    def trainable_state(self) -> dict[str, Tensor]:
        """See ``Head.trainable_state``; names begin with ``heads.NAME.``."""
        return {
            f"heads.{name}.{key}": tensor
            for name, head in self.heads.items()
            for key, tensor in head.trainable_state().items()
        }

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads the output of ``trainable_state``.

        Raises:
            KeyError: Names are missing or unexpected; the message lists them.
        """
        own: dict[str, dict[str, Tensor]] = {name: {} for name in self.heads}
        for key, tensor in state.items():
            _, name, rest = key.split(".", 2)
            if name not in own:
                raise KeyError(f"unexpected: {key}")
            own[name][rest] = tensor
        for name, head in self.heads.items():
            head.load_trainable_state(own[name])

    def forward(self, taps: LayerTaps, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Taps to the outputs of all heads, in training.

        The random generator is reset before each head, which therefore draws the same random numbers (dropout,
        proposals) as in a single-head run.

        Args:
            taps: Features as requested by ``request``.
            targets: Output of ``Task.targets``, by head name.
        """
        outputs: dict[str, Any] = {}
        for name, head in self.heads.items():
            if outputs:
                _rewind()
            outputs[name] = head(taps, targets[name])
        return outputs


def check_names(names: Iterable[str]) -> None:
    """Refuses names that are attributes of ``nn.ModuleDict``.

    Raises:
        ConfigError: The message has the name.
    """
    for name in names:
        if hasattr(nn.ModuleDict, name):
            raise ConfigError(f"--head {name}: this name is reserved by PyTorch. Choose another.")


@torch.compiler.disable
def _rewind() -> None:
    """Resets the random generators of all devices to their last seed."""
    torch.manual_seed(torch.initial_seed())


def build_head(config: TrainConfig, backbone: Backbone, task: Task) -> Head:
    """Builds the head of a single-head configuration; its initial weights depend on ``config.loop.seed`` only.

    Raises:
        ConfigError: The method does not support the task, the backbone or other settings.
    """
    check_method(config)
    decoder, num_maps = decoder_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        if config.task.own_head is not None:
            own: Any = task  # has this method if its settings have ``own_head``
            method = own.build_head(backbone)
        else:
            method = config.method.build(backbone, num_maps)
        familiarity = None
        if config.task.compares_features:
            familiarity = Familiarity(backbone.width, backbone.num_layers - 1)
        return Head(method, task.build_decoder(decoder, method.width, backbone.patch_size), familiarity)


def build_model(config: TrainConfig, backbone: Backbone, tasks: Mapping[str, Task]) -> Model:
    """Builds the heads of a run, each with the same initial weights as in a single-head run.

    Raises:
        ConfigError: As ``build_head``.
    """
    return Model({name: build_head(config.for_head(name), backbone, task) for name, task in tasks.items()})


def decoder_of(config: TrainConfig) -> tuple[str, int]:
    """Selects the task's decoder for the method's output.

    Returns:
        The decoder's name, and its number of input maps.

    Raises:
        ConfigError: The task has no compatible decoder, or the requested one is not compatible.
    """
    method, offered = config.method, config.task.decoders
    fitting = {
        name: count
        for count in method.num_maps
        for name, reads in offered.items()
        if reads == count and (method.decoders is None or name in method.decoders)
    }
    what = f"--method {method.name} outputs {' or '.join(map(str, method.num_maps))} map(s)"
    if method.decoders is not None:
        what += f" for the decoder {' or '.join(method.decoders)}"
    if not fitting:
        has = ", ".join(f"{name} (reads {reads})" for name, reads in offered.items())
        raise ConfigError(f"{what}, but {config.task.name} has no such decoder, only {has}. Choose another --method.")
    if method.decoder == "auto":
        return next(iter(fitting.items()))
    if method.decoder not in fitting:
        raise ConfigError(
            f"--decoder {method.decoder}: {what}; decoders of {config.task.name} for it: {', '.join(fitting)}. "
            "Choose one of these, or omit --decoder."
        )
    return method.decoder, fitting[method.decoder]


def check_method(config: TrainConfig) -> None:
    """Refuses a method without a compatible decoder, and settings that the method does not support.

    Raises:
        ConfigError: The message names both settings, and how to correct them.
    """
    method = config.method
    decoder_of(config)
    if config.loop.cache_features and not method.reads_frozen:
        raise ConfigError(
            f"--cache-features needs a frozen backbone, but --method {method.name} computes gradients through the "
            "backbone: omit it, or use --method vitsplit, frozen-head or linear-probe."
        )
    if config.loop.sharding != "none" and not method.shards:
        whole = ", or add --tune-blocks full" if method.has_layers else ""
        raise ConfigError(
            f"--sharding {config.loop.sharding} shards trainable parameters, but these settings of --method "
            f"{method.name} have few: most are frozen backbone weights. Omit --sharding{whole}."
        )
    if config.task.own_head is not None and not method.reads_frozen:
        raise ConfigError(f"{config.task.own_head} replaces --method {method.name}: omit one of them.")


def backbone_settings(config: TrainConfig) -> BackboneConfig:
    """The backbone's settings, with the method's patch size if none is given.

    Use this function wherever a backbone is opened for a configuration or a bundle.
    """
    if config.backbone.patch_size is None and config.method.patch_size is not None:
        return replace(config.backbone, patch_size=config.method.patch_size)
    return config.backbone


def head_shapes(config: TrainConfig, description: Mapping[str, Any]) -> Head:
    """Builds the head of a bundle on the meta device, without its language model if it has one.

    Args:
        config: The bundle's configuration.
        description: The task's description in the bundle's card.

    Raises:
        ConfigError: The settings are incompatible.
    """
    backbone = open_backbone(backbone_settings(config), only_shapes=True)
    with torch.device("meta"), SkipMetaInitialization():
        return untrained_head(config, backbone, description)


def untrained_head(config: TrainConfig, backbone: Backbone, description: Mapping[str, Any]) -> Head:
    """Builds the untrained head of a bundle on its backbone, without its language model if it has one.

    Args:
        config: The bundle's configuration.
        backbone: The backbone.
        description: The task's description in the bundle's card.

    Raises:
        ConfigError: The settings are incompatible.
    """
    without_model = {name: value for name, value in description.items() if name != "language_model"}
    return build_head(config, backbone, bare_task(config.task, without_model))
