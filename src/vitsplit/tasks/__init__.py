"""The tasks, by name. A task is one line of ``TASKS`` and one folder here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.engine.config import BackboneConfig, HeadConfig, LoopConfig, TrainConfig
from vitsplit.errors import BundleError, ConfigError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.vqa.config import VqaConfig

if TYPE_CHECKING:
    from vitsplit.tasks.base import Task


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is found.

    Attributes:
        config: Class of its settings.
        location: ``module:class`` of the task, imported when it is needed.
        default_recipe: The recipe to start from where none is named.
    """

    config: type
    location: str
    default_recipe: str


TASKS = {
    "segmentation": TaskEntry(
        SegmentationConfig, "vitsplit.tasks.segmentation.task:SegmentationTask", "laptop-segmentation"
    ),
    "depth": TaskEntry(DepthConfig, "vitsplit.tasks.depth.task:DepthTask", "laptop-depth"),
    "detection": TaskEntry(DetectionConfig, "vitsplit.tasks.detection.task:DetectionTask", "laptop-detection"),
    "vqa": TaskEntry(VqaConfig, "vitsplit.tasks.vqa.task:VqaTask", "laptop-vqa"),
}


def task_entry(name: str) -> TaskEntry:
    """The entry of a task.

    Raises:
        ConfigError: There is no task of that name.
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task '{name}'. Tasks: {', '.join(TASKS)}.")
    return TASKS[name]


def one_head(
    *, task: Any, backbone: BackboneConfig | None = None, loop: LoopConfig | None = None, **head: Any
) -> TrainConfig:
    """The configuration of one head, under its task's name.

    Args:
        task: Settings of the task.
        backbone: Settings of the frozen model; None: the defaults.
        loop: Settings of the training loop; None: the defaults.
        head: Other fields of ``HeadConfig``.
    """
    heads = {task_kind(task): HeadConfig(task=task, **head)}
    return TrainConfig(backbone=backbone or BackboneConfig(), loop=loop or LoopConfig(), heads=heads)


def task_kind(settings: Any) -> str:
    """The name of the task that settings of a task are for."""
    return next(name for name, entry in TASKS.items() if isinstance(settings, entry.config))


def task_name(config: TrainConfig) -> str:
    """The name of the task of a configuration of one head."""
    return task_kind(config.task)


def _task_class(name: str) -> Any:
    module, _, attribute = task_entry(name).location.partition(":")
    return getattr(importlib.import_module(module), attribute)


def open_task(config: TrainConfig, data: Path, splits: tuple[str, ...] = ("train", "val")) -> Task:
    """The task of a configuration on a data set.

    Raises:
        DataError: The data cannot be used; the message names the file.
    """
    return _task_class(task_name(config)).open(config.task, data, splits)


def check_description(config: TrainConfig, description: Any, where: str) -> None:
    """Refuses what a stranger's card says of a task, before anything is made of it.

    Args:
        config: The card's configuration.
        description: What should be what ``Task.describe`` gave.
        where: The file, and the place in it, for the message.

    Raises:
        BundleError: Names the place.
    """
    try:
        _task_class(task_name(config)).check_description(config.task, description, where)
    except ConfigError as error:  # a setting of the task that cannot work
        raise BundleError(f"{where}: {error}") from error


def bare_task(config: TrainConfig, description: Mapping[str, Any]) -> Task:
    """The task of a bundle, without data: enough to predict."""
    return _task_class(task_name(config)).from_description(config.task, description)
