"""AdamW over the trainable parameters, its learning rates, and a moving average of what it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitsplit.errors import ConfigError
from vitsplit.model import Head, Model
from vitsplit.train_config import OptimConfig

_LANGUAGE_MODEL = "decoder.language_model."

# torch.optim.lr_scheduler.OneCycleLR's defaults, so that the name means what everybody means by it.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25


def build_optimizer(heads: Mapping[str, Head], optims: Mapping[str, OptimConfig]) -> torch.optim.AdamW:
    """Fused AdamW over the groups of all heads, see ``parameter_groups``.

    Each group carries ``head`` (its name), ``name`` (``task_head``, ``language_model`` or ``base``) and
    ``peak_lr``, which the schedule is multiplied with.

    Raises:
        ConfigError: Nothing trains in a head.
    """
    groups = [{"head": name, **group} for name, head in heads.items() for group in parameter_groups(head, optims[name])]
    return torch.optim.AdamW(groups, fused=True)


def parameter_groups(model: Head, config: OptimConfig) -> list[dict[str, Any]]:
    """The groups of one head, as AdamW takes them: base and task head, decayed or not.

    With ``layer_decay`` each tuned block has groups of its own: of n copied blocks, or n of a baseline's transformer,
    block i (from 0) learns at ``lr * task_head_lr_scale * layer_decay^(n + 1 - i)``: the square for the last, and the
    twelfth power for the first of eleven, as in the release's detection. A transformer's embeddings have one power more
    than its first block. What is new inside of a block (``base``) learns at ``lr``.
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
        if name.startswith(_LANGUAGE_MODEL):
            role = "language_model"
        peak_lr = config.lr * scales[role]
        above = blocks_above.get(id(parameter))
        if config.layer_decay is not None and above is not None:
            peak_lr *= config.layer_decay ** (above + 2)
        # Norms and biases are the parameters with one axis.
        decayed = config.decay_norms or parameter.ndim > 1
        groups.setdefault((role, peak_lr, decayed), []).append(parameter)
    if not groups:
        raise ConfigError("Nothing trains: the head and the decoder have no trainable parameter. Turn a part on.")
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
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors: ``<parameter>/<exp_avg | exp_avg_sq | step>``."""
    return {
        f"{name}/{key}": value
        for name, parameter in trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Puts back what ``moments`` gave, on each parameter's device and in its memory layout.

    Raises:
        KeyError: A name belongs to no trainable parameter.
    """
    parameters = trainable(model)
    for key, saved in state.items():
        name, _, kind = key.rpartition("/")
        parameter = parameters[name]
        # The fused kernel walks parameter and moments in memory order, so their layouts must agree.
        like = parameter if saved.shape == parameter.shape else saved
        value = torch.empty_like(like, dtype=saved.dtype, device=parameter.device, requires_grad=False)
        optimizer.state[parameter][kind] = value.copy_(saved)


def current_lr(optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], float]:
    """The learning rates of the last step, by head: ``lr``, and ``lr_task_head`` where there is a task head.

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
    """The multiple of the peak learning rate that an optimizer step uses: a pure function of the step.

    ``poly``, ``cosine``, ``step`` and ``constant`` are multiplied by a linear warm-up, as in mmcv and so in the
    release: ``warmup_start`` at step 0, one from ``warmup_steps`` on. ``warmup-cosine`` is the same warm-up and after
    it a whole half cosine, as transformers' ``get_cosine_schedule_with_warmup`` and so in LLaVA-1.5. ``one-cycle``
    brings its own warm-up and ends at ``1 / (25 final_div_factor)``, as PyTorch's.

    Args:
        step: Optimiser steps that are done, 0 .. ``steps - 1``.
        steps: Length of the run.
        config: Shape of the schedule.

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
            # Rounded, so that a share such as 8/12 is the step that is meant, whichever way it is rounded as a float.
            passed = sum(step >= round(share * steps) for share in config.step_milestones)
            return config.step_gamma**passed
        case "cosine":
            return _cosine(1.0, 0.0, step / steps)
        case "warmup-cosine":
            length = _warmup_length(steps, config)
            return _cosine(1.0, 0.0, max(0, step - length) / (steps - length))
        case _:
            return 1.0


def _warmup(step: int, steps: int, config: OptimConfig) -> float:
    length = _warmup_length(steps, config)
    if step >= length:
        return 1.0
    return config.warmup_start + (1 - config.warmup_start) * step / length


def _warmup_length(steps: int, config: OptimConfig) -> int:
    return min(config.warmup_steps, steps // 10)


def _one_cycle(step: int, steps: int, final_div_factor: float) -> float:
    peak = ONE_CYCLE_RISE * steps - 1
    if step <= peak:
        return _cosine(ONE_CYCLE_START, 1.0, step / peak)
    return _cosine(1.0, ONE_CYCLE_START / final_div_factor, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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


def head_parameters(model: Model) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of every head."""
    return {head: list(trainable(member).values()) for head, member in model.heads.items()}


def clip(parameters: Sequence[nn.Parameter], optim: OptimConfig, norm: Tensor) -> None:
    """Clips the gradient of one head, given its norm."""
    if optim.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)
