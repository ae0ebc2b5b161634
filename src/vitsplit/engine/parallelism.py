"""Distribution of a model over processes, and its updates: data-parallel here; sharded in ``fsdp2``, ``deepspeed``."""

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
    """Runs backward passes and updates of a model. Collective methods say so: all processes must call them."""

    model: Model
    """The caller's model, used by evaluations and bundles; unsharded within ``evaluated``."""
    trained: Model
    """The model that is trained: the same one, or a copy of it with sharded parameters."""
    wrapped: nn.Module
    """The module that training steps call."""
    optimizer: torch.optim.Optimizer
    """The optimizer, whose groups hold the learning rates."""
    average: WeightAverage | None
    """The moving average of the weights, if there is one."""

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """Context of a forward and backward pass; gradients are reduced at the latest after the last one of a step."""
        ...

    def zero_grad(self) -> None:
        """Clears the gradients."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulates the gradient of this process's term of a loss summed over processes and micro-batches."""
        ...

    def update(self) -> list[Tensor]:
        """Clips the gradients and updates the weights; collective.

        Returns:
            Norms of the gradient before clipping, on the device, one or more, to be summed in squares. If one is not
            finite and ``may_overflow`` is false, the model must not be used any more.
        """
        ...

    def may_overflow(self) -> bool:
        """Whether a non-finite gradient in the last update is no error, because the step was skipped (fp16)."""
        ...

    def tensors(self) -> RunTensors:
        """The contents of a checkpoint, unsharded; collective. Only those of the main process are complete."""
        ...

    def load(self, tensors: RunTensors) -> None:
        """Loads the output of ``tensors``, which every process has read.

        Raises:
            KeyError: Names are missing or unexpected.
            RuntimeError: A tensor has another shape.
        """
        ...

    def evaluated(self) -> AbstractContextManager[None]:
        """Within the block ``model`` is unsharded, in eval mode, with averaged weights if there are any; collective."""
        ...


def parallelize(accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> Parallelism:
    """Distributes a model as ``config.loop.sharding`` says.

    Raises:
        ConfigError: The model cannot be trained with this sharding.
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
    """A full copy of the model on every process; gradients are averaged over processes."""

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
        """See ``Parallelism``. The fused kernel skips the step if a gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        # Clipped per head, so that a head does not depend on the others trained with it.
        norms = {
            head: torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            for head, parameters in self.parameters.items()
        }
        for head, optim in self.optims.items():
            clip(self.parameters[head], optim, norms[head])
        if not self.scaler.is_enabled():  # otherwise the scaler sets it
            finite = torch.stack([*norms.values()]).isfinite().all()
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # read by fused optimizers
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return [*norms.values()]

    def may_overflow(self) -> bool:
        """See ``Parallelism``: after an overflow in fp16 the scaler has halved its scale.

        A scale below 0.5 (after 18 skipped steps in a row from the start) means that scaling is not the cause.
        """
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 0.5

    def tensors(self) -> RunTensors:
        """See ``Parallelism``. The tensors are not copied."""
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
