"""What all ways of sharding share: which settings they refuse, and the two models of a sharded run.

A sharded run has two models of the same structure. The one that trains is in pieces, spread over the processes. The
other is the caller's: empty (on the meta device) while steps are taken, and whole while it is evaluated and saved. So
an evaluation is a plain forward pass on every process, however many images each has, and whatever is saved from it can
hold neither a shard nor an empty placeholder.
"""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vitsplit.errors import ConfigError
from vitsplit.precision import train_in_float32
from vitsplit.train_config import TrainConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LAUNCH = "torchrun --nproc-per-node 8 -m vitsplit train ..."


def check_sharding(config: TrainConfig, processes: int) -> None:
    """Refuses what cannot be combined with sharding, before anything is loaded.

    Raises:
        ConfigError: The message names both settings, or what is missing.
    """
    loop, optims = config.loop, config.optims()
    flag = f"--sharding {loop.sharding}"
    _check_launcher()
    if loop.sharding == "none":
        return
    if processes < 2:
        raise ConfigError(f"{flag} spreads the model over processes, and there is one. Launch several: {LAUNCH}")
    if loop.precision == "fp16":
        raise ConfigError(f"{flag} does not scale losses, as --precision fp16 needs it: choose bf16 or fp32.")
    if loop.compile:
        raise ConfigError(f"{flag} cannot be combined with --compile: leave one of them away.")
    if loop.sharding == "fsdp2":
        return
    if loop.ema is not None:
        raise ConfigError(f"{flag} keeps no average of weights: leave --ema away, or choose --sharding fsdp2.")
    if len(optims) > 1 and any(optim.clip_norm is not None for optim in optims.values()):
        raise ConfigError(f"{flag} clips all heads' gradients as one: leave --clip-norm away, or choose fsdp2.")
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"{flag} needs the package deepspeed: pip install 'vitsplit[deepspeed]'.")


def _check_launcher() -> None:
    """Refuses a launch that has accelerate shard by settings of its own, beside the run's."""
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"accelerate was launched with settings for sharding ({variable}). The run's own --sharding says how "
                f"to shard, so launch plainly: {LAUNCH}, or accelerate launch --multi_gpu."
            )


def split_off(model: ModuleT) -> ModuleT:
    """A second model of the same structure over the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared)


def prepare_parameters(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Gives tensors the dtypes that sharding relies on, in place, and moves buffers to the device.

    What trains becomes float32. What is frozen in a language model is rounded to what is computed in: sharded tensors
    cannot be rounded later.

    Raises:
        ConfigError: A tensor cannot be sharded.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.ndim == 0:
            what = "a quantised tensor" if parameter.ndim else "a single number"
            raise ConfigError(f"--sharding: {name} is {what}, which cannot be sharded. Choose --sharding none.")
    train_in_float32(model)
    for language_model in language_models(model):
        for parameter in language_model.parameters():
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def language_models(model: nn.Module) -> list[Any]:
    """The models of transformers in a model, without those inside of others."""
    if importlib.util.find_spec("transformers") is None:
        return []
    from transformers import PreTrainedModel

    found = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    return [
        module
        for name, module in found.items()
        if not any(name.startswith(f"{other}.") for other in found if other != name)
    ]


@contextmanager
def filled(model: nn.Module, whole: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block an emptied model has whole parameters, by name; afterwards it is empty again."""
    _replace_parameters(model, whole.__getitem__)
    try:
        yield
    finally:
        empty(model)


def empty(model: nn.Module) -> None:
    """Replaces a model's parameters by ones without storage, so that nothing but their shapes and names is left."""
    shapes = {name: torch.empty_like(parameter, device="meta") for name, parameter in model.named_parameters()}
    _replace_parameters(model, shapes.__getitem__)


def _replace_parameters(model: nn.Module, by_name: Callable[[str], Tensor]) -> None:
    made: dict[int, nn.Parameter] = {}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            # A parameter of two places, such as a language model's first and last layer, stays one.
            if id(old) not in made:
                tensor = by_name(first_names[id(old)]).detach()
                made[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(module, name, made[id(old)])
