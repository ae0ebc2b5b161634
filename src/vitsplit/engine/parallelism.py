"""How a model is spread over processes and updated: whole on each of them, or sharded (``fsdp2``, ``deepspeed``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitsplit.engine.checkpoint import RunTensors
from vitsplit.engine.optim import (
    WeightAverage,
    build_optimizer,
    clip,
    head_parameters,
    load_moments,
    moments,
)
from vitsplit.model import Model
from vitsplit.precision import train_in_float32
from vitsplit.train_config import OptimConfig, TrainConfig


class Parallelism(Protocol):
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

    def update(self) -> list[Tensor]:
        """Clips and takes the step, on all processes.

        Returns:
            Norms of the gradient before clipping, on the device: one or more that add up in squares. If one is not
            finite, and ``may_overflow`` does not say that this is no error, the model is not to be used any more.
        """
        ...

    def may_overflow(self) -> bool:
        """Whether the gradient of the last update may be not finite without an error: that step was skipped."""
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


def spread_model(accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> Parallelism:
    """What ``config.loop.sharding`` asks for.

    Raises:
        ConfigError: The model cannot be trained so.
    """
    match config.loop.sharding:
        case "none":
            return DataParallel(accelerator, config, model, dtype)
        case "fsdp2":
            from vitsplit.engine.fsdp2 import Fsdp2  # slow to import

            return Fsdp2(accelerator, config, model, dtype)
        case "zero2" | "zero3":
            from vitsplit.engine.deepspeed import Zero  # an optional extra

            return Zero(accelerator, config, model, dtype)


class DataParallel:
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
        """See ``Parallelism``."""
        return nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def zero_grad(self) -> None:
        """See ``Parallelism``."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Parallelism``. Gradients are averaged over processes, and the loss is a sum over them."""
        self.scaler.scale(loss * self.accelerator.num_processes).backward()

    def update(self) -> list[Tensor]:
        """See ``Parallelism``. A gradient that is not finite reaches no weight: the fused kernel skips the step."""
        self.scaler.unscale_(self.optimizer)
        # Each head's by itself: what clips one must not depend on which others are trained beside it.
        norms = {
            head: torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            for head, parameters in self.parameters.items()
        }
        for head, optim in self.optims.items():
            clip(self.parameters[head], optim, norms[head])
        if not self.scaler.is_enabled():  # else it does this
            finite = torch.stack([*norms.values()]).isfinite().all()
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # read by fused optimizers
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return [*norms.values()]

    def may_overflow(self) -> bool:
        """See ``Parallelism``: an overflow in fp16 is the scaler's business, which has halved its scale.

        Where that was below 1, after 17 skipped steps in a row from the start, the scale is not what makes it overflow.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 0.5

    def tensors(self) -> RunTensors:
        """See ``Parallelism``. These are the live tensors, not copies."""
        return RunTensors(
            weights=self.model.trainable_state(),
            moments=moments(self.model, self.optimizer),
            average=None if self.average is None else self.average.state,
            loss_scale=self.scaler.state_dict(),
        )

    def load(self, tensors: RunTensors) -> None:
        """See ``Parallelism``."""
        self.model.load_trainable_state(tensors.weights)
        load_moments(self.model, self.optimizer, tensors.moments)
        if self.average is not None and tensors.average is not None:
            self.average.load(tensors.average)
        if tensors.loss_scale:
            self.scaler.load_state_dict(tensors.loss_scale)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """See ``Parallelism``."""
        with self.average.applied() if self.average else nullcontext():
            self.model.eval()
            try:
                yield
            finally:
                self.model.train()
