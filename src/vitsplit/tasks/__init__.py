"""The tasks, by name: from a feature map to predictions, with data, loss and metrics.

A task is one folder here and one line of ``TASKS``, or an entry point ``vitsplit.tasks`` of another package: a subclass
of ``TaskConfig`` with its settings, and with what can be asked about the task without opening it.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vitsplit.config import Settings, Size
from vitsplit.errors import BundleError, ConfigError
from vitsplit.extensions import Table

if TYPE_CHECKING:
    from vitsplit.data.check import Report
    from vitsplit.tasks.base import Task

TASKS = Table(
    "task",
    "vitsplit.tasks",
    {
        "segmentation": "vitsplit.tasks.segmentation.config:SegmentationConfig",
        "depth": "vitsplit.tasks.depth.config:DepthConfig",
        "detection": "vitsplit.tasks.detection.config:DetectionConfig",
        "vqa": "vitsplit.tasks.vqa.config:VqaConfig",
    },
)


@dataclass(frozen=True)
class Score:
    """The figure that decides which bundle of a task is best, for people.

    Attributes:
        title: Its name: ``mIoU``.
        metric: The key of the evaluation's metrics that it is, or is the negative of.
        sign: -1 where a lower metric is better, so that a higher score always is.
        scale: What it is multiplied with to be shown: 100 for shares.
        unit: Of what is shown.
    """

    title: str
    metric: str
    sign: int = 1
    scale: float = 100.0
    unit: str = "%"


class TaskConfig(Settings):
    """The settings of a task, and what it can do.

    Attributes:
        name: What it is called on the command line, in cards and in ``TASKS``.
        location: ``module:class`` of the task itself, which is imported when it is opened.
        default_recipe: The recipe to start from where none is named; None: the defaults, for a short run.
        decoders: Its decoders, and how many maps each reads. The first is its own, ``linear``: what ViT-Split has.
        scores: What ``Evaluation.score_name`` may be, for people.
        tiles: How the predictions of a large image's tiles are put together: values of pixels are averaged (``dense``),
            objects are merged (``objects``); None: an image is not predicted in tiles.
        shares_crops: Whether its labels follow a crop that is drawn for several heads (``tasks.base.CropData``).
        without_own_augmentation: Settings that turn off what only its own augmentation has, under such a crop.
        most_tuned: The greatest share of the backbone's layers that is proposed for the task head.
        num_classes: Classes to count parameters with where no data is known; 0: it has none.
    """

    name: ClassVar[str]
    location: ClassVar[str]
    default_recipe: ClassVar[str | None] = None
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1}
    scores: ClassVar[Mapping[str, Score]]
    tiles: ClassVar[Literal["dense", "objects"] | None] = None
    shares_crops: ClassVar[bool] = False
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {}
    most_tuned: ClassVar[float] = 0.5
    num_classes: ClassVar[int] = 0

    format: str = "auto"
    """Layout of the data folder."""
    crop_size: Size = (512, 512)
    """Height and width of the training crops."""

    @classmethod
    def task_type(cls) -> Any:
        """The class of the task, a ``tasks.base.Task``."""
        module, _, attribute = cls.location.partition(":")
        return getattr(importlib.import_module(module), attribute)

    @property
    def own_head(self) -> str | None:
        """The setting with which the task builds a head of its own (``Task.build_head``) in the method's place."""
        return None

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on, and so of the tiles of a large one."""
        return self.crop_size

    def with_crop(self, geometry: Any) -> Self:
        """Settings under the crop that several heads share: the fields in common are those of ``GeometryConfig``."""
        own = {field.name for field in dataclasses.fields(self)}
        shared = {each.name: getattr(geometry, each.name) for each in dataclasses.fields(geometry) if each.name in own}
        return dataclasses.replace(self, **shared, **self.without_own_augmentation)

    def for_tiles(self, tile: tuple[int, int]) -> Self:
        """Settings under which a tile of this size is neither resized nor cut again."""
        settings: dict[str, Any] = {"crop_size": tile, "image_scale": (max(tile), min(tile))}
        fields = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in settings.items() if name in fields})


def task_config(name: str) -> type[TaskConfig]:
    """The settings class of a task.

    Raises:
        ConfigError: There is no task of that name.
    """
    found: type[TaskConfig] = TASKS.load(name)
    return found


def open_task(config: TaskConfig, data: Path, splits: tuple[str, ...] = ("train", "val")) -> Task:
    """A task on a data set.

    Raises:
        DataError: The data cannot be used; the message names the file.
    """
    task: Task = config.task_type().open(config, data, splits)
    return task


def bare_task(config: TaskConfig, description: Mapping[str, Any]) -> Task:
    """The task of a bundle, without data: enough to predict."""
    task: Task = config.task_type().from_description(config, description)
    return task


def check_description(config: TaskConfig, description: Any, where: str) -> None:
    """Refuses what a stranger's card says of a task, before anything is made of it.

    Args:
        config: The task's settings in the card.
        description: What should be what ``Task.describe`` gave.
        where: The file, and the place in it, for the message.

    Raises:
        BundleError: Names the place.
    """
    try:
        config.task_type().check_description(config, description, where)
    except ConfigError as error:  # a setting of the task that cannot work
        raise BundleError(f"{where}: {error}") from error


def check_data(
    root: str | Path,
    task: str,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Report:
    """Reads every file of a data set and reports what it holds and what is wrong.

    Args:
        root: Folder of the data set.
        task: Name of a task.
        workers: Processes that read; 0: one per core.
        progress: Called as files are read, with the number of files read so far and of all.
        settings: Of the task that say how its files are read, such as ``format`` or ``depth_scale``; what is None
            keeps its default.

    Raises:
        ConfigError: The task or the format is not known, the task checks no files, or a setting is not one of it.
        DataError: The folder is missing or its layout is not recognized.
    """
    kind = task_config(task)
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in fields:
            raise ConfigError(f"--{name.replace('_', '-')} {given[name]}: not a setting of {task}. Omit it.")
    if not hasattr(kind.task_type(), "check_files"):
        raise ConfigError(f"--task {task}: the task has no check of its files.")
    config = kind(**given)
    report: Report = kind.task_type().check_files(
        config, Path(root), workers or os.cpu_count() or 1, progress or (lambda done, total: None)
    )
    return report
