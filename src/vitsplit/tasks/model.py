"""Everything that trains for one task: a head (taps to map) and a decoder (map to output)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from vitsplit.types import LayerTaps, TapRequest


class Head(Protocol):
    """A way from taps to a map, or to several: ViT-Split's ``SplitHead``, or a baseline. Always an ``nn.Module``."""

    width: int
    """Channels of the map."""

    def request(self, *, train: bool) -> TapRequest:
        """What the head reads of the backbone: in training, or else only what its output depends on."""
        ...

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role: ``task_head`` (pretrained; a fraction of the rate) and ``base`` (new)."""
        ...

    def __call__(self, taps: LayerTaps) -> Tensor | list[Tensor]:
        """``fused_BDhw``; or four maps of D channels, the finest first, for decoders that read so many."""
        ...


class Trainee(nn.Module):
    """What data-parallel training wraps and a checkpoint saves: the model of one task, or those of several."""

    @abstractmethod
    def request(self, *, train: bool) -> TapRequest:
        """What a pass of the backbone must deliver, in training or else at prediction."""

    @abstractmethod
    def members(self) -> Mapping[str, TaskModel]:
        """The model of every task that is trained, by the task's name; the only one of a run of one task is ``""``."""

    def trainable_state(self) -> dict[str, Tensor]:
        """What a bundle or a checkpoint holds: trainable parameters and the buffers of norms, by name."""
        # A parameter of two names (a language model's first and last layer may be one) stands here under its first.
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        kept = trained | {name for name, _ in self.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in kept}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Loads what ``trainable_state`` gave.

        Raises:
            KeyError: Names are missing or unexpected; the message lists them.
        """
        expected = self.trainable_state().keys()
        missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected)
        if missing or unexpected:
            raise KeyError(f"missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
        self.load_state_dict(state, strict=False)


class TaskModel(Trainee):
    """Head and decoder, and nothing of the backbone: what a bundle saves."""

    def __init__(self, head: Any, decoder: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.decoder = decoder

    def request(self, *, train: bool) -> TapRequest:
        """What the head asks for."""
        request: TapRequest = self.head.request(train=train)
        return request

    def members(self) -> dict[str, TaskModel]:
        """This model alone."""
        return {"": self}

    def upgraded(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state that an earlier version saved, as ``load_trainable_state`` takes it."""
        upgrade = getattr(self.head, "upgraded", None)
        if upgrade is None:
            return dict(state)
        mine = {name.removeprefix("head."): tensor for name, tensor in state.items() if name.startswith("head.")}
        return {**state, **{f"head.{name}": tensor for name, tensor in upgrade(mine).items()}}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Loads what ``trainable_state`` gave, here or in an earlier version."""
        super().load_trainable_state(self.upgraded(state))

    def forward(self, taps: LayerTaps, targets: Any = None) -> Any:
        """Taps to the decoder's output.

        Args:
            taps: What ``request`` asked for.
            targets: What ``Task.targets`` gave in training; None at prediction, and for decoders that need none.
        """
        fused_BDhw = self.head(taps)
        return self.decoder(fused_BDhw) if targets is None else self.decoder(fused_BDhw, targets)
