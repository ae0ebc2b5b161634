"""AdamW over what trains, in as few groups as possible."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitsplit.errors import ConfigError
from vitsplit.tasks.model import TaskModel
from vitsplit.training.config import OptimConfig


def build_optimizer(model: TaskModel, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with at most four groups: task head or not, decayed or not.

    Each group carries ``name`` (``task_head`` or ``base``) and ``peak_lr``, which the schedule is multiplied with.

    Raises:
        ConfigError: Nothing trains.
    """
    in_task_head = {id(parameter) for parameter in model.head.param_groups().get("task_head", [])}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for parameter in trainable(model).values():
        role = "task_head" if id(parameter) in in_task_head else "base"
        # Norms and biases are the parameters with one axis.
        decayed = config.decay_norms or parameter.ndim > 1
        groups.setdefault((role, decayed), []).append(parameter)
    if not groups:
        raise ConfigError("Nothing trains: the head and the decoder have no trainable parameter. Turn a part on.")
    peak_lr = {"task_head": config.lr * config.task_head_lr_scale, "base": config.lr}
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "name": role,
                "peak_lr": peak_lr[role],
                "weight_decay": config.weight_decay if decayed else 0.0,
            }
            for (role, decayed), parameters in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to its peak times the factor."""
    for group in optimizer.param_groups:
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


def current_lr(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rate of the last step: ``lr``, and ``lr_task_head`` where there is a task head."""
    by_role = {group["name"]: group["lr"] for group in optimizer.param_groups}
    names = {"base": "lr", "task_head": "lr_task_head"}
    return {names[role]: by_role[role] for role in ("base", "task_head") if role in by_role}
