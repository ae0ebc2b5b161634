"""Training with sharded parameters, gradients and moments: PyTorch's FSDP2.

Layers of a language model are gathered one at a time, in the compute precision. All other modules (connector, head,
decoder) are comparatively small: they are gathered in float32 and run under autocast, as in an unsharded run. The
frozen backbone is not sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vitsplit.engine.checkpoint import RunTensors
from vitsplit.engine.optim import (
    WeightAverage,
    build_optimizer,
    clip,
    head_parameters,
    load_moments,
    moments,
    trainable,
)
from vitsplit.engine.sharding import empty, filled, language_models, prepare_parameters, split_off
from vitsplit.errors import TrainingError
from vitsplit.model import Model
from vitsplit.train_config import TrainConfig


class Fsdp2:
    """See ``Parallelism``."""

    def __init__(self, accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> None:
        self.accelerator = accelerator
        self.optims = config.optims()
        prepare_parameters(model, dtype, accelerator.device)
        self.model = model
        self.trained = split_off(model)
        empty(model)
        shard(self.trained, dtype)
        self.wrapped: nn.Module = self.trained
        # Built on the shards, so that its moments are sharded too.
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.trained.heads, self.optims)
        self.average = None if config.loop.ema is None else WeightAverage(self.trained, config.loop.ema)
        self.parameters = head_parameters(self.trained)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See ``Parallelism``. Gradients are reduced after every micro-batch, otherwise they would be unsharded."""
        return nullcontext()

    def zero_grad(self) -> None:
        """See ``Parallelism``."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Parallelism``. Gradients are summed over processes, as the loss is."""
        loss.backward()

    def update(self) -> list[Tensor]:
        """See ``Parallelism``.

        Raises:
            TrainingError: No gradient has reached a head.
        """
        norms = {head: self._norm(head, parameters) for head, parameters in self.parameters.items()}
        for head, optim in self.optims.items():
            clip(self.parameters[head], optim, norms[head])
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return [*norms.values()]

    def _norm(self, head: str, parameters: list[nn.Parameter]) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            raise TrainingError(
                f"--sharding fsdp2: no gradient reached the head {head}. With this version of PyTorch its output must "
                "be a tensor, or tensors in lists, tuples or dictionaries. Update PyTorch, or use --sharding none."
            )
        return _full(torch.nn.utils.get_total_norm(gradients))

    def may_overflow(self) -> bool:
        """See ``Parallelism``: fp16 is not supported."""
        return False

    def tensors(self) -> RunTensors:
        """See ``Parallelism``."""
        return RunTensors(
            weights=self._gathered(self.trained.trainable_state()),
            moments=self._gathered(moments(self.trained, self.optimizer)),
            average=None if self.average is None else self._gathered(self.average.state),
            loss_scale={},
        )

    def _gathered(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Full tensors in CPU memory of the main process; empty on the others, which only take part in gathering."""
        gathered = {}
        for name, tensor in state.items():
            full = _full(tensor)
            if self.accelerator.is_main_process:
                gathered[name] = full.detach().cpu()
        return gathered

    def load(self, tensors: RunTensors) -> None:
        """See ``Parallelism``."""
        live = self.trained.trainable_state()
        self.trained.load_trainable_state(_shards(tensors.weights, live))
        parameters = trainable(self.trained)
        by_moment = {key: parameters[key.rpartition("/")[0]] for key in tensors.moments}
        load_moments(self.trained, self.optimizer, _shards(tensors.moments, by_moment))
        if self.average is not None and tensors.average is not None:
            self.average.load(_shards(tensors.average, live))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """See ``Parallelism``."""
        averaged = {} if self.average is None else self.average.state
        full = {
            name: _full(averaged.get(name, parameter.detach())) for name, parameter in self.trained.named_parameters()
        }
        with filled(self.model, full):
            self.model.eval()
            yield


def shard(model: nn.Module, dtype: torch.dtype) -> None:
    """Shards a model's parameters over the processes, in place.

    Units of gathering: every layer of a language model, its input embeddings, its output layer, and the rest of it;
    every copied block of a task head; and all other parameters.
    """
    computed_in = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=computed_in, reduce_dtype=torch.float32)
    for language_model in language_models(model):
        layers = set(language_model._no_split_modules or ())
        # Decoders call embeddings, layers and the output layer directly, not the surrounding model.
        ends = [language_model.get_input_embeddings(), language_model.get_output_embeddings()]
        tied = ends[1] is not None and ends[0].weight is ends[1].weight
        units = [module for module in language_model.modules() if type(module).__name__ in layers]
        units += [ends] if tied else [end for end in ends if end is not None]
        for unit in [*units, language_model.base_model]:
            fully_shard(unit, mp_policy=policy)
    heads: list[Any] = [module for module in model.modules() if hasattr(module, "copied_blocks")]
    for head in heads:
        for block in head.copied_blocks():
            fully_shard(block)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # By default the mean, which PyTorch 2.8 does not compute on CPUs (gloo).
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _shards(full: dict[str, Tensor], like: dict[str, Tensor] | dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Shards full tensors like those of the same name."""
    return {name: _shard(tensor, like.get(name)) for name, tensor in full.items()}


def _shard(full: Tensor, like: Tensor | None) -> Tensor:
    # Another shape: a moment's step count, or a mismatch, which is an error when it is loaded.
    if not isinstance(like, DTensor) or full.shape != like.shape:
        return full
    # Every process has read the full tensor, so nothing needs to be sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
