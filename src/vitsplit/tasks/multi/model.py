"""The models of several tasks side by side: they share the taps of one pass, and no weight."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitsplit.tasks.model import TaskModel, Trainee
from vitsplit.types import LayerTaps, TapRequest


class MultiModel(Trainee):
    """What a joint run trains.

    Args:
        models: The tasks' models, by the tasks' names.
    """

    def __init__(self, models: Mapping[str, TaskModel]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(models)

    def request(self, *, train: bool) -> TapRequest:
        """What serves all heads: the union of what each asks for."""
        return functools.reduce(operator.or_, (model.request(train=train) for model in self.members().values()))

    def members(self) -> dict[str, TaskModel]:
        """The models by name."""
        return dict(self.models.items())  # type: ignore[arg-type]  # all are TaskModels

    def forward(self, taps: LayerTaps, targets: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Taps to the outputs of all tasks.

        In training every model draws (dropout, proposals) from the random stream that this pass was given, from its
        start: the same numbers as in a run of its own.

        Args:
            taps: What ``request`` asked for.
            targets: By task, what its ``Task.targets`` gave in training.
        """
        outputs = {}
        for name, model in self.members().items():
            if self.training:
                _rewind()
            outputs[name] = model(taps, None if targets is None else targets[name])
        return outputs


@torch.compiler.disable
def _rewind() -> None:
    """Back to the start of the stream that ``torch.manual_seed`` last began, on all devices."""
    torch.manual_seed(torch.initial_seed())
