"""AdamW over the trainable parameters, learning rate schedules, and an exponential moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitsplit.bundle import LANGUAGE_MODEL
from vitsplit.errors import ConfigError
from vitsplit.model import Head, Model
from vitsplit.train_config import OptimConfig

# Defaults of torch.optim.lr_scheduler.OneCycleLR.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25


def build_optimizer(heads: Mapping[str, Head], optims: Mapping[str, OptimConfig]) -> torch.optim.AdamW:
    """Fused AdamW over the groups of all heads, see ``parameter_groups``.

    Each group has the keys ``head`` (the head's name), ``name`` (``task_head``, ``language_model`` or ``base``) and
    ``peak_lr``, which is multiplied by the schedule.

    Raises:
        ConfigError: A head has no trainable parameters.
    """
    groups = [{"head": name, **group} for name, head in heads.items() for group in parameter_groups(head, optims[name])]
    return torch.optim.AdamW(groups, fused=True)


def parameter_groups(model: Head, config: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups of one head: base and task head, with and without weight decay.

    With ``layer_decay`` each tuned block has its own groups: of n copied blocks, or n blocks of a baseline's
    transformer, block i (from 0) has the learning rate ``lr * task_head_lr_scale * layer_decay^(n + 1 - i)``: exponent
    2 for the last block, and 12 for the first of eleven, as in the release's detection. The exponent of a transformer's
    embeddings is one larger than that of its first block. New parameters inside of a block (``base``) have the learning
    rate ``lr``.
    """
    blocks_above = {id(p): above for above, group in model.head.pretrained_parameters().items() for p in group}
    scales = {
        "base": 1.0,
        "task_head": config.task_head_lr_scale,
        "language_model": config.language_model_lr_scale,
    }
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(model).items():
        role = "task_head" if id(parameter) in blocks_above else "base"
        if name.startswith(LANGUAGE_MODEL):
            role = "language_model"
        peak_lr = config.lr * scales[role]
        above = blocks_above.get(id(parameter))
        if config.layer_decay is not None and above is not None:
            peak_lr *= config.layer_decay ** (above + 2)
        # Norms and biases are the one-dimensional parameters.
        decayed = config.decay_norms or parameter.ndim > 1
        groups.setdefault((role, peak_lr, decayed), []).append(parameter)
    if not groups:
        raise ConfigError("No trainable parameters: head and decoder are frozen or empty. Enable a trainable part.")
    return [
        {
            "params": parameters,
            "name": role,
            "lr": config.lr,
            "peak_lr": peak_lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
            "betas": config.betas,
        }
        for (role, peak_lr, decayed), parameters in groups.items()
    ]


def set_lr(optimizer: torch.optim.Optimizer, factor: float, head: str) -> None:
    """Sets the learning rate of a head's groups to their peak times the factor."""
    for group in optimizer.param_groups:
        if group["head"] == head:
            group["lr"] = group["peak_lr"] * factor


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as a flat dictionary: ``<parameter>/<exp_avg | exp_avg_sq | step>``."""
    return {
        f"{name}/{key}": value
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Loads the output of ``moments``, on each parameter's device and in its memory layout.

    Raises:
        KeyError: A name is not that of a trainable parameter.
    """
    parameters = trainable(model)
    for key, saved in state.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        # The fused kernel iterates over parameter and moments in memory order, so their layouts must match.
        like = parameter if saved.shape == parameter.shape else saved
        value = torch.empty_like(like, dtype=saved.dtype, device=parameter.device, requires_grad=False)
        optimizer.state[parameter][kind] = value.copy_(saved)


def current_lr(optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], float]:
    """The learning rates of the last step, by head and name: ``lr``, ``lr_task_head``, ``lr_language_model``.

    With ``layer_decay`` the task head's is that of its last block, the largest.
    """
    by_role: dict[tuple[str, str], float] = {}
    for group in optimizer.param_groups:
        key = (group["head"], group["name"])
        by_role[key] = max(group["lr"], by_role.get(key, 0.0))
    names = {"base": "lr", "task_head": "lr_task_head", "language_model": "lr_language_model"}
    return {
        (head, names[role]): by_role[head, role]
        for head in dict.fromkeys(head for head, _ in by_role)
        for role in names
        if (head, role) in by_role
    }


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The factor on the peak learning rate at a step: a pure function of the step.

    ``poly``, ``cosine``, ``step`` and ``constant`` are multiplied by a linear warm-up, as in mmcv and so in the
    release: ``warmup_start`` at step 0, 1 from ``warmup_steps`` on. ``warmup-cosine`` is the same warm-up followed by a
    half cosine, as transformers' ``get_cosine_schedule_with_warmup`` and so in LLaVA-1.5. ``one-cycle`` has its own
    warm-up and ends at ``1 / (25 final_div_factor)``, as in PyTorch.

    Args:
        step: Completed optimizer steps, 0 .. ``steps - 1``.
        steps: Total steps of the run.
        config: The schedule's settings.

    Returns:
        The factor, 0 .. 1.
    """
    if config.schedule == "one-cycle":
        return _one_cycle(step, steps, config.final_div_factor)
    return _decay(step, steps, config) * _warmup(step, steps, config)


def _decay(step: int, steps: int, config: OptimConfig) -> float:
    match config.schedule:
        case "poly":
            return (1 - step / steps) ** config.poly_power
        case "step":
            # Rounded, so that the float error of a fraction such as 8/12 does not shift the step.
            passed = sum(step >= round(share * steps) for share in config.step_milestones)
            return config.step_gamma**passed
        case "cosine":
            return _cosine(1.0, 0.0, step / steps)
        case "warmup-cosine":
            length = warmup_length(steps, config)
            return _cosine(1.0, 0.0, max(0, step - length) / (steps - length))
        case _:
            return 1.0


def _warmup(step: int, steps: int, config: OptimConfig) -> float:
    length = warmup_length(steps, config)
    if step >= length:
        return 1.0
    return config.warmup_start + (1 - config.warmup_start) * step / length


def warmup_length(steps: int, config: OptimConfig) -> int:
    """The steps of the linear warm-up of a run; 0 for ``one-cycle``, which has its own."""
    return 0 if config.schedule == "one-cycle" else min(config.warmup_steps, steps // 10)


def _one_cycle(step: int, steps: int, final_div_factor: float) -> float:
    peak = ONE_CYCLE_RISE * steps - 1
    if step <= peak:
        return _cosine(ONE_CYCLE_START, 1.0, step / peak)
    return _cosine(1.0, ONE_CYCLE_START / final_div_factor, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class WeightAverage:
    """Exponential moving average of a model's trainable state; integer buffers are copied.

    Running statistics are averaged like weights, so that they match the averaged weights.

    Args:
        model: The model; its current state initializes the average.
        decay: Decay per step, between 0 and 1.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = model
        self.state: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in _live(model).items()}
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average with the model's current state."""
        live = _live(self.model)
        floats = [name for name, tensor in live.items() if tensor.is_floating_point()]
        self._average([_local(self.state[name]) for name in floats], [_local(live[name]) for name in floats], 0)
        for name in live.keys() - set(floats):
            self.state[name].copy_(live[name])

    def load(self, state: dict[str, Tensor]) -> None:
        """Loads a saved average."""
        for name, tensor in self.state.items():
            tensor.copy_(state[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Loads the average into the model within the block, and restores the model's own weights afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in _live(self.model).items()}
        self.model.load_trainable_state(self.state)
        try:
            yield
        finally:
            self.model.load_trainable_state(own)


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a sharded tensor, any other tensor unchanged: averaging is element-wise."""
    if type(tensor) in (Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor  # slow to import

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _live(model: Model) -> dict[str, Tensor]:
    return model.trainable_state()


def head_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of every head."""
    return {head: list(trainable(member).values()) for head, member in model.heads.items()}


def clip(parameters: Sequence[nn.Parameter], optim: OptimConfig, norm: Tensor) -> None:
    """Clips the gradient of one head, given its norm."""
    if optim.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)
