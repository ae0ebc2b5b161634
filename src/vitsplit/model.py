"""What a run trains: heads by name, each a method (taps to map) and a task's decoder (map to output).

The frozen backbone stands beside it: it has no gradient, is in no checkpoint, and is never wrapped for data-parallel
training. Heads share the taps of its one pass, and no weight.
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
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.train_config import TrainConfig
from vitsplit.types import LayerTaps, TapRequest


class Head(nn.Module):
    """Method and decoder, and nothing of the backbone: what a bundle saves.

    Args:
        method: What ``MethodConfig.build`` made. The attribute is called ``head``, as the tensors of bundles are.
        decoder: Map to the task's output.
    """

    def __init__(self, method: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.head = method
        self.decoder = decoder

    def request(self, *, train: bool) -> TapRequest:
        """What the method reads of the backbone."""
        request: TapRequest = self.head.request(train=train)
        return request

    def trainable_state(self) -> dict[str, Tensor]:
        """What a bundle or a checkpoint holds: trainable parameters and the buffers of norms, by name."""
        # A parameter of two names (a language model's first and last layer may be one) stands here under its first.
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        kept = trained | {name for name, _ in self.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in kept}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what ``trainable_state`` gave, here or in an earlier version.

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
        """A state that an earlier version saved, as this one has it."""
        upgrade = getattr(self.head, "upgraded", None)
        if upgrade is None:
            return dict(state)
        mine = {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}
        return {**state, **{f"head.{name}": tensor for name, tensor in upgrade(mine).items()}}

    def forward(self, taps: LayerTaps, targets: Any = None) -> Any:
        """Taps to the decoder's output.

        Args:
            taps: What ``request`` asked for.
            targets: What ``Task.targets`` gave in training; None at prediction, and for decoders that need none.
        """
        fused_BDhw = self.head(taps)
        return self.decoder(fused_BDhw) if targets is None else self.decoder(fused_BDhw, targets)


class Model(nn.Module):
    """All heads of a run: what data-parallel training wraps and a checkpoint saves.

    Args:
        heads: The heads by their names.

    Raises:
        ConfigError: As ``check_names``.
    """

    heads: Mapping[str, Head]

    def __init__(self, heads: Mapping[str, Head]) -> None:
        super().__init__()
        check_names(heads)
        self.heads = nn.ModuleDict(heads)  # type: ignore[assignment]  # a mapping in all but its class

    def request(self, *, train: bool) -> TapRequest:
        """What serves all heads: the union of what each reads."""
        return functools.reduce(operator.or_, (head.request(train=train) for head in self.heads.values()))

    def trainable_state(self) -> dict[str, Tensor]:
        """See ``Head.trainable_state``; names begin with ``heads.NAME.``."""
        return {
            f"heads.{name}.{key}": tensor
            for name, head in self.heads.items()
            for key, tensor in head.trainable_state().items()
        }

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what ``trainable_state`` gave.

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

        Every head draws (dropout, proposals) from the random stream that this pass was given, from its start: the same
        numbers as in a run of its own.

        Args:
            taps: What ``request`` asked for.
            targets: By head, what its ``Task.targets`` gave.
        """
        outputs: dict[str, Any] = {}
        for name, head in self.heads.items():
            if outputs:
                _rewind()
            outputs[name] = head(taps, targets[name])
        return outputs


def check_names(names: Iterable[str]) -> None:
    """Refuses a name that no module can have.

    Raises:
        ConfigError: Names it.
    """
    for name in names:
        if hasattr(nn.ModuleDict, name):
            raise ConfigError(f"--head {name}: PyTorch has another use for this name. Choose another.")


@torch.compiler.disable
def _rewind() -> None:
    """Back to the start of the stream that ``torch.manual_seed`` last began, on all devices."""
    torch.manual_seed(torch.initial_seed())


def build_head(config: TrainConfig, backbone: Backbone, task: Task) -> Head:
    """The untrained head of a configuration of one; its initial weights depend on ``config.loop.seed`` alone.

    Raises:
        ConfigError: The method is not for the task or the backbone, or settings contradict it.
    """
    check_method(config)
    decoder, num_maps = decoder_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        if config.task.own_head is not None:
            own: Any = task  # which has such a method where its settings say so
            method = own.build_head(backbone)
        else:
            method = config.method.build(backbone, num_maps)
        return Head(method, task.build_decoder(decoder, method.width, backbone.patch_size))


def build_model(config: TrainConfig, backbone: Backbone, tasks: Mapping[str, Task]) -> Model:
    """The untrained heads of a run: each starts with the weights that it would start with alone.

    Raises:
        ConfigError: As ``build_head``.
    """
    return Model({name: build_head(config.only(name), backbone, task) for name, task in tasks.items()})


def decoder_of(config: TrainConfig) -> tuple[str, int]:
    """Which of the task's decoders reads what the method delivers, and how many maps that is.

    Raises:
        ConfigError: The task has none that fits, or not the one that was asked for.
    """
    method, offered = config.method, config.task.decoders
    fitting = {
        name: count
        for count in method.num_maps
        for name, reads in offered.items()
        if reads == count and (method.decoders is None or name in method.decoders)
    }
    what = f"--method {method.name} delivers {' or '.join(map(str, method.num_maps))} map(s)"
    if method.decoders is not None:
        what += f" for the decoder {' or '.join(method.decoders)}"
    if not fitting:
        has = ", ".join(f"{name} (reads {reads})" for name, reads in offered.items())
        raise ConfigError(f"{what}, and {config.task.name} has no such decoder, only {has}. Choose another --method.")
    if method.decoder == "auto":
        return next(iter(fitting.items()))
    if method.decoder not in fitting:
        raise ConfigError(
            f"--decoder {method.decoder}: {what}; of {config.task.name} it goes with {', '.join(fitting)}. "
            "Choose one of these, or omit --decoder."
        )
    return method.decoder, fitting[method.decoder]


def check_method(config: TrainConfig) -> None:
    """Refuses a method that the task has no decoder for, and settings that contradict it.

    Raises:
        ConfigError: Names both, and what to do.
    """
    method = config.method
    decoder_of(config)
    if config.loop.cache_features and not method.reads_frozen:
        raise ConfigError(
            f"--cache-features stores what a frozen backbone computes, and --method {method.name} trains through the "
            "backbone: omit it, or choose --method vitsplit, frozen-head or linear-probe."
        )
    if config.loop.sharding != "none" and not method.shards:
        raise ConfigError(
            f"--sharding {config.loop.sharding} spreads trainable parameters over processes, and --method "
            f"{method.name} has few: the others are the frozen backbone's own weights. Omit --sharding."
        )
    if config.task.own_head is not None and not method.reads_frozen:
        raise ConfigError(f"{config.task.own_head} takes the place of --method {method.name}: omit one of them.")


def backbone_settings(config: TrainConfig) -> BackboneConfig:
    """The settings of a configuration's backbone, with the patch size that its method wants where none is given.

    Whatever opens a backbone for a configuration or a bundle opens this one.
    """
    if config.backbone.patch_size is None and config.method.patch_size is not None:
        return replace(config.backbone, patch_size=config.method.patch_size)
    return config.backbone


def head_shapes(config: TrainConfig, description: Mapping[str, Any]) -> Head:
    """The head of a bundle on the meta device, without memory for weights and without the language model of one.

    Args:
        config: The bundle's configuration.
        description: What it says of its task.

    Raises:
        ConfigError: Its settings contradict one another.
    """
    backbone = open_backbone(backbone_settings(config), only_shapes=True)
    said = {name: value for name, value in description.items() if name != "language_model"}
    with torch.device("meta"):
        return build_head(config, backbone, bare_task(config.task, said))
