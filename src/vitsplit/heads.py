"""Heads of a run: creation from recipes, changes of settings, and checks.

A setting without a head's name (``--lr 1e-4``) applies to all heads; one with a name (``--depth.lr 3e-4``) to one head.
Heads that share a crop have one augmentation, ``TrainConfig.geometry``, instead of their tasks' own.

Heads are trained independently: each has its own parameters, initial weights, optimizer settings, learning rate
schedule, gradient clipping, random numbers and best bundle, and crops do not depend on labels. So a head's weights are
those of a separate run with the same geometry, bit for bit if sums are computed in the same order: always on a CPU with
a fixed number of threads, and on a GPU except for non-deterministic kernels. The shared crop is that of segmentation's
own augmentation with ``max_class_ratio`` 1; depth and detection alone have other augmentations.

Heads share the end of a run: a non-finite loss in any head ends it, and ``patience`` ends it when no head improves. In
fp16 they share the loss scale, so an overflow in one head skips the step of all.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from vitsplit.errors import ConfigError
from vitsplit.tasks import TASKS, task_config
from vitsplit.train_config import FlatConfig, GeometryConfig, HeadConfig, TrainConfig

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FOLDERS = ("best", "last")

TaskConfigT = TypeVar("TaskConfigT")


def sharing_tasks() -> tuple[str, ...]:
    """The names of the tasks that support a shared crop."""
    return tuple(name for name in TASKS.names() if task_config(name).shares_crops)


def sharing_crops(recipes: Mapping[str, TrainConfig], geometry: GeometryConfig, **shared: Any) -> TrainConfig:
    """Combines single-head configurations, by head name, to one with a shared crop and shared settings."""
    heads = {name: replace(each.head, task=each.task.with_crop(geometry)) for name, each in recipes.items()}
    return TrainConfig(geometry=geometry, heads=heads, **shared)


def from_flat(flat: FlatConfig[Any], name: str) -> TrainConfig:
    """The configuration of a single head, with its task's own augmentation."""
    return TrainConfig(backbone=flat.backbone, loop=flat.loop, heads={name: _head_of(flat)})


def changed(
    config: TrainConfig,
    shared: Callable[[FlatConfig[Any]], FlatConfig[Any]],
    own: Callable[[str, HeadConfig[Any]], HeadConfig[Any]],
) -> TrainConfig:
    """The configuration with changed settings: first those of all heads, then those of each head.

    Args:
        config: The configuration.
        shared: Maps ``TrainConfig.flat`` of a head to changed settings, in the same way for every head.
        own: Maps a head's name and settings to changed settings of this head.

    Raises:
        ConfigError: As ``check_heads``, or what the functions raise.
    """
    has_geometry = config.geometry is not None
    for name, head in config.heads.items():
        flat = shared(config.flat(name))
        changed_head = _head_of(flat)
        if has_geometry:
            changed_head = replace(changed_head, task=head.task.with_crop(flat.task))
        config = TrainConfig(
            geometry=flat.task if has_geometry else None,
            backbone=flat.backbone,
            loop=flat.loop,
            heads={**config.heads, name: own(name, changed_head)},
        )
    check_heads(config)
    return config


def check_heads(config: TrainConfig) -> None:
    """Refuses a run without heads, invalid head names, and settings that the shared crop replaces.

    Raises:
        ConfigError: The message names the flags.
    """
    if not config.heads:
        raise ConfigError("A run needs at least one head. Add heads with their data: --head depth:FOLDER.")
    for name in config.heads:
        check_head_name(name)
    if config.geometry is None:
        if len(config.heads) > 1:
            raise ConfigError(
                f"The heads {', '.join(config.heads)} need a shared crop: add 'geometry' to the settings."
            )
        return
    for name, head in config.heads.items():
        cropped = head.task.with_crop(config.geometry)
        for each in dataclasses.fields(cropped):
            if getattr(cropped, each.name) != getattr(head.task, each.name):
                raise ConfigError(_replaced(name, each.name, getattr(head.task, each.name)))


def check_head_name(name: str) -> None:
    """Refuses a name that cannot be used in flags or as a folder name.

    Raises:
        ConfigError: The message has the name.
    """
    if not _NAME.fullmatch(name) or name in _FOLDERS:
        raise ConfigError(
            f"--head {name}: invalid head name. Use a letter followed by letters, digits, '-' and '_' (at most 64 "
            f"characters), other than {' and '.join(_FOLDERS)}."
        )


def _head_of(flat: FlatConfig[Any]) -> HeadConfig[Any]:
    return HeadConfig(**{each.name: getattr(flat, each.name) for each in dataclasses.fields(HeadConfig)})


def _replaced(head: str, name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if name in {each.name for each in dataclasses.fields(GeometryConfig)}:
        return f"--{head}.{flag} {value}: all heads share the same crops. Set it for all heads: --{flag}."
    return f"--{head}.{flag} {value}: not supported by the shared augmentation of several heads. Omit it."
