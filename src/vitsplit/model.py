"""What a run trains: heads by name, each a method (taps to map) and a task's decoder (map to output).

The frozen backbone stands beside it: it has no gradient, is in no checkpoint, and is never wrapped for data-parallel
training. Heads share the taps of its one pass, and no weight.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.engine.config import TrainConfig
from vitsplit.errors import ConfigError
from vitsplit.methods.adapter_head import AdapterHead
from vitsplit.methods.adaptformer import AdaptFormer
from vitsplit.methods.full_finetune import FullFineTune
from vitsplit.methods.linear_probe import LastLayer
from vitsplit.methods.lora import LowRank
from vitsplit.methods.settings import backbone_settings, check_method, decoder_kind
from vitsplit.methods.split.head import SplitHead
from vitsplit.methods.vpt import DeepPrompts
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.connectors import build_head as build_connector
from vitsplit.types import LayerTaps, TapRequest


class Method(Protocol):
    """A way from taps to a map, or to several: ViT-Split's ``SplitHead``, or a baseline. Always an ``nn.Module``."""

    width: int
    """Channels of the map."""

    def request(self, *, train: bool) -> TapRequest:
        """What the method reads of the backbone: in training, or else only what its output depends on."""
        ...

    def pretrained_parameters(self) -> dict[int | None, list[nn.Parameter]]:
        """Trainable parameters that start pretrained, which learn at a rate of their own; all others are new.

        By the number of blocks between them and the output, for layer decay; None: not decayed.
        """
        ...

    def __call__(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``fused_BDhw``; or four maps of D channels, the finest first, for decoders that read so many."""
        ...


class Head(nn.Module):
    """Method and decoder, and nothing of the backbone: what a bundle saves.

    Args:
        method: A ``Method``. The attribute is called ``head``, as the tensors of bundles are.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        method = _method(config, backbone)
        return Head(method, task.build_decoder(method.width, backbone.patch_size, kind=decoder_kind(config)))


def build_model(config: TrainConfig, backbone: Backbone, tasks: Mapping[str, Task]) -> Model:
    """The untrained heads of a run: each starts with the weights that it would start with alone.

    Raises:
        ConfigError: As ``build_head``.
    """
    return Model({name: build_head(config.only(name), backbone, task) for name, task in tasks.items()})


def _method(config: TrainConfig, backbone: Backbone) -> Any:
    """The way from taps to a map, or to the four that UperNet reads."""
    baseline = config.baseline
    drop_path = baseline.drop_path or 0.0
    match config.method:
        case "vitsplit":
            if isinstance(config.task, VqaConfig):  # whichever connector was named
                return build_connector(config.task, config.split, backbone)
            return SplitHead(backbone, config.split)
        case "linear-probe" | "frozen-head":
            return LastLayer(backbone)
        case "full-finetune":
            return FullFineTune(backbone, drop_path=drop_path)
        case "upernet":
            return FullFineTune(backbone, num_maps=4, drop_path=drop_path)
        case "lora":
            return LowRank(backbone, baseline, drop_path=drop_path)
        case "vpt":
            return DeepPrompts(backbone, baseline, drop_path=drop_path)
        case "adaptformer":
            return AdaptFormer(backbone, baseline, drop_path=drop_path)
        case "vit-adapter" | "vit-comer" as name:
            pyramid = decoder_kind(config) == "upernet"
            return AdapterHead(name, backbone, pyramid=pyramid, drop_path=baseline.drop_path)


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
        return build_head(config, backbone, bare_task(config, said))
