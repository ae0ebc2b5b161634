"""An exponential moving average of what trains, which is then what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitsplit.model import Model


class WeightAverage:
    """The average of a model's trainable state; integer buffers are copied.

    Running statistics are averaged like weights, so that they belong to the averaged weights.

    Args:
        model: The model, whose present state the average starts from.
        decay: Share of the old average that a step keeps, between 0 and 1.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = model
        self.state: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in _live(model).items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's present state."""
        live = _live(self.model)
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._average([_local(self.state[name]) for name in floats], [_local(live[name]) for name in floats], 0)
        for name in live.keys() - set(floats):
            self.state[name].copy_(live[name])

    def load(self, state: dict[str, Tensor]) -> None:
        """Puts back a saved average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model holds the average; afterwards its own weights again."""
        own = {name: tensor.detach().clone() for name, tensor in _live(self.model).items()}
        self.model.load_trainable_state(self.state)
        try:
            yield
        finally:
            self.model.load_trainable_state(own)


def _local(tensor: Tensor) -> Tensor:
    """This process's piece of a sharded tensor, and any other tensor itself: averaging goes number by number."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor  # slow to import

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _live(model: Model) -> dict[str, Tensor]:
    return model.trainable_state()
