"""Training with DeepSpeed: ZeRO stage 2 (sharded gradients and moments) or 3 (sharded parameters too).

DeepSpeed runs the backward pass, clipping and the step. In bf16 all parameters are bf16, with float32 master weights of
the trainable ones, which are initialized from the rounded values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitsplit.engine.checkpoint import RunTensors
from vitsplit.engine.optim import WeightAverage, build_optimizer, trainable
from vitsplit.engine.sharding import empty, filled, prepare_parameters, split_off
from vitsplit.errors import ConfigError
from vitsplit.model import Model
from vitsplit.precision import autocast
from vitsplit.train_config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
SETTINGS: dict[str, Any] = {
    "communication_data_type": "fp32",
    "zero_allow_untested_optimizer": True,
    "wall_clock_breakdown": False,
}
"""DeepSpeed's configuration for both stages."""
STAGES: dict[int, dict[str, Any]] = {
    2: {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 50_000_000,
        "allgather_bucket_size": 50_000_000,
    },
    3: {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 50_000_000,
        "sub_group_size": 1_000_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_param_persistence_threshold": 100_000,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    },
}
"""DeepSpeed's configuration for each stage."""


class Zero:
    """See ``Parallelism``."""

    average: WeightAverage | None = None
    wrapped: nn.Module
    zero: Any  # DeepSpeed's optimizer around AdamW

    def __init__(self, accelerator: Accelerator, config: TrainConfig, model: Model, dtype: torch.dtype) -> None:
        # Not through accelerate, which supports one configuration per process, and makes transformers treat every
        # model of the process as sharded.
        import deepspeed

        self.accelerator = accelerator
        self.stage = 3 if config.loop.sharding == "zero3" else 2
        prepare_parameters(model, dtype, accelerator.device)
        _check_norms(model, dtype)
        self.model = model
        self.trained = split_off(model)
        empty(model)
        if dtype == torch.float32:
            self.trained.float()  # frozen bf16 weights too: DeepSpeed requires one dtype
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.trained.heads, config.optims())
        self.wrapped, self.zero, _, _ = deepspeed.initialize(
            model=_UnderAutocast(self.trained, accelerator.device.type, dtype),
            optimizer=self.optimizer,
            config=_settings(config, self.stage, accelerator.num_processes, dtype),
        )
        self.flat: list[Tensor] = self._flat_masters()
        self._init_moments()

    def micro_batch(self, *, last: bool) -> AbstractContextManager[object]:
        """See ``Parallelism``: DeepSpeed counts micro-batches itself."""
        return nullcontext()

    def zero_grad(self) -> None:
        """See ``Parallelism``: DeepSpeed clears gradients at the end of a step."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Parallelism``. Gradients are averaged over processes, and the loss is a sum over them."""
        engine: Any = self.wrapped
        engine.backward(loss * self.accelerator.num_processes, scale_wrt_gas=False)
        if not last:
            engine.step()  # only counts the micro-batch

    def update(self) -> list[Tensor]:
        """See ``Parallelism``. The norm is known after the step, which DeepSpeed skips if it is not finite."""
        engine: Any = self.wrapped
        engine.step()
        norm = torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float64)
        return [norm.to(self.accelerator.device)]

    def may_overflow(self) -> bool:
        """See ``Parallelism``: fp16 is not supported."""
        return False

    def tensors(self) -> RunTensors:
        """See ``Parallelism``."""
        from deepspeed.utils import safe_get_full_optimizer_state

        main = self.accelerator.is_main_process
        weights, moments = {}, {}
        parameters = trainable(self.trained)
        step = self.zero.optimizer.state[self.flat[0]]["step"]
        for name, tensor in self.trained.trainable_state().items():
            full = self._master(parameters[name]) if name in parameters else tensor
            if main:
                weights[name] = full.cpu()
        for name, parameter in parameters.items():
            shape = self.model.get_parameter(name).shape
            for kind in MOMENTS:
                full = safe_get_full_optimizer_state(parameter, kind)
                if main:
                    moments[f"{name}/{kind}"] = full.view(shape).cpu()
            if main:
                moments[f"{name}/step"] = step.clone().cpu()
        return RunTensors(weights=weights, moments=moments, average=None, loss_scale={})

    def load(self, tensors: RunTensors) -> None:
        """See ``Parallelism``."""
        parameters = trainable(self.trained)
        self._load_weights(tensors.weights, parameters)
        for key, value in tensors.moments.items():
            name, _, kind = key.rpartition("/")
            if kind in MOMENTS:
                self._set_shard(parameters[name], value, kind)
            else:
                for flat in self.flat:
                    self.zero.optimizer.state[flat][kind].copy_(value)

    def _load_weights(self, weights: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
        buffers = dict(self.trained.named_buffers())
        expected = self.trained.trainable_state().keys()
        if expected != weights.keys():
            missing, unexpected = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
            raise KeyError(f"missing: {missing or 'none'}; unexpected: {unexpected or 'none'}")
        for name, value in weights.items():
            if name in buffers:
                buffers[name].copy_(value)
                continue
            shape = self.model.get_parameter(name).shape
            if shape != value.shape:
                raise RuntimeError(f"{name} has shape {list(value.shape)} in the file, but {list(shape)} in the model")
            self._set_shard(parameters[name], value)
            with self._gathered([parameters[name]], writes=True), torch.no_grad():
                parameters[name].copy_(value)

    def _set_shard(self, parameter: nn.Parameter, full: Tensor, kind: str | None = None) -> None:
        """Sets this process's shard of a parameter's float32 values, or of a moment."""
        from deepspeed import utils

        full = full.to(self.accelerator.device, torch.float32)
        if self.stage == 2:
            if kind is None:
                utils.safe_set_full_fp32_param(parameter, full)
            else:
                utils.safe_set_full_optimizer_state(parameter, full, kind)
            return
        # All shards have one size, so the last is padded, which DeepSpeed's setters of full tensors do not handle.
        tensor: Any = parameter
        size = tensor.ds_tensor.numel()
        padded = nn.functional.pad(full.flatten(), (0, size * self.accelerator.num_processes - full.numel()))
        local = padded[size * self.accelerator.process_index :][:size]
        if kind is None:
            utils.safe_set_local_fp32_param(parameter, local)
        else:
            utils.safe_set_local_optimizer_state(parameter, local, kind)

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """See ``Parallelism``."""
        full = {}
        for name, parameter in self.trained.named_parameters():
            if parameter.requires_grad:
                full[name] = self._master(parameter)
                continue
            with self._gathered([parameter]):
                # In stage 2 parameters are not sharded.
                full[name] = parameter.detach().clone() if self.stage == 3 else parameter.detach()
        with filled(self.model, full):
            self.model.eval()
            yield

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """The gathered float32 values of a trainable parameter."""
        from deepspeed.utils import safe_get_full_fp32_param

        full: Tensor = safe_get_full_fp32_param(parameter)
        return full.detach()

    def _gathered(self, parameters: list[nn.Parameter], *, writes: bool = False) -> AbstractContextManager[object]:
        """Gathers parameters within the block; with ``writes``, changes to them are kept afterwards."""
        if self.stage == 2:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        context: AbstractContextManager[object] = GatheredParameters(parameters, modifier_rank=0 if writes else None)
        return context

    def _flat_masters(self) -> list[Tensor]:
        """The flat tensors that the optimizer updates."""
        flat = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        return list(flat)

    def _init_moments(self) -> None:
        """Initializes AdamW's moments to zero, as the first step would, so that they can be read and set before it."""
        for flat in self.flat:
            self.zero.optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                **{kind: torch.zeros_like(flat, requires_grad=False) for kind in MOMENTS},
            }
        if self.stage == 2:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for group, flat in zip(self.zero.bit16_groups, self.flat, strict=True):
                lazy_init_hp_params_optimizer_state(group, flat, self.zero.optimizer.state)


def _settings(config: TrainConfig, stage: int, processes: int, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's configuration; with ``dtype`` bf16 it keeps float32 master weights of the trainable parameters."""
    clip_norms = [optim.clip_norm for optim in config.optims().values() if optim.clip_norm is not None]
    return SETTINGS | {
        "zero_optimization": STAGES[stage],
        "train_micro_batch_size_per_gpu": config.loop.batch_size // (processes * config.loop.accumulate),
        "gradient_accumulation_steps": config.loop.accumulate,
        "gradient_clipping": max(clip_norms, default=0.0),
        "bf16": {"enabled": dtype == torch.bfloat16},
    }


class _UnderAutocast(nn.Module):
    """Enables autocast inside of the wrapped model: DeepSpeed disables it around the model it wraps."""

    def __init__(self, model: nn.Module, device_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.device_type = device_type
        self.dtype = dtype

    def forward(self, *args: Any) -> Any:
        with autocast(self.device_type, self.dtype):
            return self.model(*args)


def _check_norms(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuses batch norms in bf16: bf16 weights with float32 statistics are not supported by the kernels."""
    if dtype == torch.float32:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"--sharding zero2 and zero3 do not support batch norm in bf16 ({name}). Use --sharding fsdp2, "
                "--precision fp32, or a decoder without batch norm (--decoder-norm group)."
            )
