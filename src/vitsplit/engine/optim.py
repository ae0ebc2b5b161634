"""AdamW over what trains, in as few groups as possible."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitsplit.engine.config import OptimConfig
from vitsplit.errors import ConfigError
from vitsplit.model import Head

_LANGUAGE_MODEL = "decoder.language_model."


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
