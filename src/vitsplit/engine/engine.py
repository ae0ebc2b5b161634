"""How gradients are made, joined over processes and used: plainly, or with the model in pieces (``sharding``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitsplit.engine.checkpoint import RunTensors
from vitsplit.engine.config import OptimConfig, TrainConfig
from vitsplit.engine.ema import WeightAverage
from vitsplit.engine.optim import build_optimizer, load_moments, moments, trainable
from vitsplit.engine.precision import train_in_float32
from vitsplit.model import Model

Admit = Callable[[Sequence[Tensor]], None]
"""Looks at the norms of the gradient, one or more that add up in squares, and raises if the step must not stand."""


class Engine(Protocol):
    """Trains a model. Where a method says so, all processes must call it together."""

    model: Model
    """The caller's model, as evaluations and bundles see it: whole within ``evaluated``."""
    trained: Model
    """What the steps train: the same model, or one like it whose parameters are spread over processes."""
    wrapped: nn.Module
    """The same as steps call it."""
    optimizer: torch.optim.Optimizer
    """Whose groups hold the learning rates."""
    average: WeightAverage | None
    """The average of the weights, where one is kept."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """What a forward and backward pass runs in; only after the last of a step gradients must be joined."""
        ...

    def zero_grad(self) -> None:
        """Forgets the gradient of the step before."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of a loss that is this process's share of a sum over processes and micro-batches."""
        ...

    def update(self, admit: Admit) -> None:
        """Clips and takes the step, on all processes. If ``admit`` raises, this model is not to be used any more."""
        ...

    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite is no error: the step is skipped by itself."""
        ...

    def tensors(self) -> RunTensors:
        """What a checkpoint holds, whole, on all processes together; only the main one's is to be written."""
        ...

    def load(self, tensors: RunTensors) -> None:
        """Puts back what ``tensors`` gave, which every process read.

        Raises:
            KeyError: Names are missing or unexpected.
            RuntimeError: A tensor has another shape.
        """
        ...

    def evaluated(self) -> AbstractContextManager[None]:
        """Within the block ``model`` is whole, in eval mode, with the average in it; on all processes together."""
        ...


def build_engine(accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> Engine:
    """The engine that ``config.loop.sharding`` asks for.

    Raises:
        ConfigError: The model cannot be trained so.
    """
    match config.loop.sharding:
        case "none":
            return PlainEngine(accelerator, config, model, dtype)
        case "fsdp2":
            from vitsplit.engine.fsdp2 import Fsdp2Engine  # slow to import

            return Fsdp2Engine(accelerator, config, model, dtype)
        case "zero2" | "zero3":
            from vitsplit.engine.deepspeed.engine import ZeroEngine  # an optional extra

            return ZeroEngine(accelerator, config, model, dtype)


def head_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """What trains of every head."""
    return {head: list(trainable(member).values()) for head, member in model.heads.items()}


def clip(parameters: Sequence[nn.Parameter], optim: OptimConfig, norm: Tensor) -> None:
    """Clips the gradient of one head, whose norm it is."""
    if optim.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)


class PlainEngine:
    """The whole model on every process; with several, data-parallel training averages their gradients."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> None:
        self.accelerator = accelerator
        self.optims: Mapping[str, OptimConfig] = config.optims()
        train_in_float32(model)
        self.model = self.trained = model
        self.wrapped: nn.Module = accelerator.prepare_model(torch.compile(model) if config.loop.compile else model)
        self.optimizer: torch.optim.Optimizer = build_optimizer(model.heads, self.optims)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=dtype == torch.float16)
        self.average = None if config.loop.ema is None else WeightAverage(model, config.loop.ema)
        self.parameters = head_parameters(model)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See ``Engine``."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def zero_grad(self) -> None:
        """See ``Engine``."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Engine``. Gradients are averaged over processes, and the loss is a sum over them."""
        self.scaler.scale(loss * self.accelerator.num_processes).backward()

    def update(self, admit: Admit) -> None:
        """See ``Engine``."""
        self.scaler.unscale_(self.optimizer)
        # Each head's by itself: what clips one must not depend on which others are trained beside it.
        norms = {
            head: torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            for head, parameters in self.parameters.items()
        }
        admit(list(norms.values()))
        for head, optim in self.optims.items():
            clip(self.parameters[head], optim, norms[head])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()

    def may_overflow(self) -> bool:
        """See ``Engine``: an overflow in fp16 is the scaler's business, which halves its scale.

        Below 1, which is 17 skipped steps in a row from the start, the loss's scale is not what makes it overflow.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def tensors(self) -> RunTensors:
        """See ``Engine``. These are the live tensors, not copies."""
        return RunTensors(
            weights=self.model.trainable_state(),
            moments=moments(self.model, self.optimizer),
            average=None if self.average is None else self.average.state,
            loss_scale=self.scaler.state_dict(),
        )

    def load(self, tensors: RunTensors) -> None:
        """See ``Engine``."""
        self.model.load_trainable_state(tensors.weights)
        load_moments(self.model, self.optimizer, tensors.moments)
        if self.average is not None and tensors.average is not None:
            self.average.load(tensors.average)
        if tensors.loss_scale:
            self.scaler.load_state_dict(tensors.loss_scale)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """See ``Engine``."""
        with self.average.applied() if self.average else nullcontext():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()
