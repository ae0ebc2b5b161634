"""Heads of a run: made from recipes, changed together or one by one, checked.

A setting without a head's name (``--lr 1e-4``) is that of all heads; one with a name (``--depth.lr 3e-4``) is that of
one head. Heads that share a crop have one augmentation, ``TrainConfig.geometry``, in place of their tasks' own.

No trainable parameter is shared, and nothing else may make a head depend on the others: each has its own initial
weights, optimizer settings, learning rate schedule, gradient clipping, random draws and best bundle, and crops are
drawn without a look at any label. So a head ends as in a run of its own with the same geometry, bit for bit where the
machine computes the same sum in the same order: always on a CPU with a fixed number of threads, and on a GPU up to
kernels that add in any order. Segmentation's is also that of a run with its own augmentation and ``max_class_ratio`` 1;
those of depth and detection are other augmentations.

What heads do share is when a run ends: at a loss that is not finite, with ``patience`` when no head gets better, and
in fp16 the loss scale, so that an overflow in one head skips the step of all.
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
    """The names of the tasks that can learn from the same crops."""
    return tuple(name for name in TASKS.names() if task_config(name).shares_crops)


def sharing_crops(recipes: Mapping[str, TrainConfig], geometry: GeometryConfig, **shared: Any) -> TrainConfig:
    """The heads of several configurations of one head, by names of their own, with a crop and settings in common."""
    heads = {name: replace(each.head, task=each.task.with_crop(geometry)) for name, each in recipes.items()}
    return TrainConfig(geometry=geometry, heads=heads, **shared)


def from_flat(flat: FlatConfig[Any], name: str) -> TrainConfig:
    """The configuration of one head, with its task's own augmentation."""
    return TrainConfig(backbone=flat.backbone, loop=flat.loop, heads={name: _head_of(flat)})


def changed(
    config: TrainConfig,
    shared: Callable[[FlatConfig[Any]], FlatConfig[Any]],
    own: Callable[[str, HeadConfig[Any]], HeadConfig[Any]],
) -> TrainConfig:
    """The configuration with settings changed: those of all heads first, then those of each.

    Args:
        config: The configuration.
        shared: Is given ``TrainConfig.flat`` of a head and returns it changed. It must do the same for every head.
        own: Is given a head's name and settings, and returns them changed.

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
    """Refuses a run without heads, names that cannot be a folder's, and settings that the shared crop replaces.

    Raises:
        ConfigError: Names the flags.
    """
    if not config.heads:
        raise ConfigError("A run needs at least one head. Name heads, tasks and data: --head depth:FOLDER.")
    for name in config.heads:
        check_head_name(name)
    if config.geometry is None:
        if len(config.heads) > 1:
            raise ConfigError(
                f"The heads {', '.join(config.heads)} need one crop for all: give the settings a geometry."
            )
        return
    for name, head in config.heads.items():
        ruled = head.task.with_crop(config.geometry)
        for each in dataclasses.fields(ruled):
            if getattr(ruled, each.name) != getattr(head.task, each.name):
                raise ConfigError(_replaced(name, each.name, getattr(head.task, each.name)))


def check_head_name(name: str) -> None:
    """Refuses a name that cannot stand before a flag, or be a folder's.

    Raises:
        ConfigError: Names it.
    """
    if not _NAME.fullmatch(name) or name in _FOLDERS:
        raise ConfigError(
            f"--head {name}: a head cannot be called so. Choose another name: a letter, then letters, digits, '-' and "
            "'_'."
        )


def _head_of(flat: FlatConfig[Any]) -> HeadConfig[Any]:
    return HeadConfig(**{each.name: getattr(flat, each.name) for each in dataclasses.fields(HeadConfig)})


def _replaced(head: str, name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if name in {each.name for each in dataclasses.fields(GeometryConfig)}:
        return f"--{head}.{flag} {value}: all heads see the same crops. Give it to all: --{flag} without '{head}.'."
    return (
        f"--{head}.{flag} {value}: heads on the same images have one augmentation, and this is not part of it. Omit it."
    )
