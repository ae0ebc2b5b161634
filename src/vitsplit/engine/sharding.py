"""Common parts of all sharding backends: checks of settings, and the two models of a sharded run.

A sharded run has two models of the same structure. The trained one is sharded over the processes. The other is the
caller's: on the meta device during training steps, and with full parameters while it is evaluated and saved. So an
evaluation is a plain forward pass on every process, whatever its number of images, and bundles never contain shards or
meta tensors.
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
from vitsplit.extras import require
from vitsplit.precision import train_in_float32
from vitsplit.train_config import TrainConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LAUNCH = "torchrun --nproc-per-node 8 -m vitsplit train ..."


def check_sharding(config: TrainConfig, processes: int) -> None:
    """Refuses settings that sharding does not support, before anything is loaded.

    Raises:
        ConfigError: A setting or the launch is not supported, or a package is missing; the message names them.
    """
    loop, optims = config.loop, config.optims()
    flag = f"--sharding {loop.sharding}"
    _check_launcher()
    if loop.sharding == "none":
        return
    if processes < 2:
        raise ConfigError(f"{flag} needs several processes, but there is only one. Launch more: {LAUNCH}")
    if loop.precision == "fp16":
        raise ConfigError(f"{flag} does not support --precision fp16 (no loss scaling): use bf16 or fp32.")
    if loop.compile:
        raise ConfigError(f"{flag} cannot be combined with --compile: omit one of them.")
    if loop.sharding == "fsdp2":
        return
    if loop.ema is not None:
        raise ConfigError(f"{flag} does not support --ema: omit it, or use --sharding fsdp2.")
    if len(optims) > 1 and any(optim.clip_norm is not None for optim in optims.values()):
        raise ConfigError(f"{flag} clips all heads' gradients together: omit --clip-norm, or use --sharding fsdp2.")
    require(flag, "deepspeed", extra="deepspeed")


def _check_launcher() -> None:
    """Refuses an accelerate launch with its own sharding settings, which would conflict with the run's."""
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"accelerate was launched with its own sharding settings ({variable}). Use --sharding instead, and "
                f"launch without them: {LAUNCH}, or accelerate launch --multi_gpu."
            )


def split_off(model: ModuleT) -> ModuleT:
    """A second model of the same structure that shares parameters and buffers with the first."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo=shared)


def prepare_parameters(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Converts parameters in place to the dtypes that sharding requires, and moves buffers to the device.

    Trainable parameters become float32. Frozen float32 parameters of a language model are converted to ``dtype``, the
    compute precision, because sharded tensors cannot be converted later.

    Raises:
        ConfigError: A tensor cannot be sharded.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.ndim == 0:
            what = "a quantized tensor" if parameter.ndim else "a scalar"
            raise ConfigError(f"--sharding: {name} is {what}, which cannot be sharded. Use --sharding none.")
    train_in_float32(model)
    for language_model in language_models(model):
        for parameter in language_model.parameters():
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def language_models(model: nn.Module) -> list[Any]:
    """The outermost transformers models inside of a model."""
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
    """Gives a model on the meta device full parameters, by name, within the block."""
    _replace_parameters(model, whole.__getitem__)
    try:
        yield
    finally:
        empty(model)


def empty(model: nn.Module) -> None:
    """Moves a model's parameters to the meta device, in place."""
    shapes = {name: torch.empty_like(parameter, device="meta") for name, parameter in model.named_parameters()}
    _replace_parameters(model, shapes.__getitem__)


def _replace_parameters(model: nn.Module, by_name: Callable[[str], Tensor]) -> None:
    made: dict[int, nn.Parameter] = {}
    first_names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            # Tied parameters, such as a language model's embeddings and output layer, stay tied.
            if id(old) not in made:
                tensor = by_name(first_names[id(old)]).detach()
                made[id(old)] = nn.Parameter(tensor, requires_grad=old.requires_grad)
            setattr(module, name, made[id(old)])
