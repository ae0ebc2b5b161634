"""The table of tasks, and the settings and capabilities that all have."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from vitsplit.config import Settings, Size
from vitsplit.errors import BundleError, ConfigError
from vitsplit.extensions import Table
from vitsplit.memory import available_cores

if TYPE_CHECKING:
    from vitsplit.data.check import Report
    from vitsplit.tasks.base import Task
    from vitsplit.tasks.prediction import Prediction

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
    """How the metric that selects the best bundle of a task is displayed.

    Attributes:
        title: Display name, such as ``mIoU``.
        metric: Key in the metrics of an evaluation.
        sign: -1 if lower is better, so that a higher score is always better.
        scale: Factor for display, such as 100 for percentages.
        unit: Unit for display.
    """

    title: str
    metric: str
    sign: int = 1
    scale: float = 100.0
    unit: str = "%"


@dataclass(frozen=True)
class IncludedModel:
    """A model other than the backbone whose trained weights are in bundles.

    Attributes:
        name: Its name.
        license: License of the original weights; None: unknown.
    """

    name: str
    license: str | None


class TaskConfig(Settings):
    """The settings of a task, and its capabilities.

    Attributes:
        name: Its name on the command line, in cards and in ``TASKS``.
        location: ``module:class`` of the task itself, imported when it is opened.
        prediction: ``module:class`` of its predictions, which declares what they can be saved as.
        default_recipe: The recipe used by default; None: the defaults of the settings, for a short run.
        decoders: Names of the decoders, and the number of maps each reads. The first is the default, ``linear``, as in
            ViT-Split.
        scores: The possible values of ``Evaluation.score_name``, and how each is displayed.
        tiles: How predictions on the tiles of a large image are merged: pixel values are averaged (``dense``), or
            objects are merged (``objects``); None: tiling is not supported.
        shares_crops: Whether its labels can follow a crop shared by several heads (``tasks.base.CropData``).
        without_own_augmentation: Settings that disable its own augmentation under a shared crop.
        most_tuned: Maximum fraction of the backbone's layers proposed for the task head.
        num_classes: Number of classes for counting parameters without data; 0: the task has no classes.
        answers_questions: Whether its predictions answer questions (``tasks.vqa.prediction.VqaPrediction``).
        calibrated: Whether its predictions have a confidence with a temperature, the attribute ``temperature`` of the
            task. While that is None, evaluations fit it and report it as the metric ``calibration.temperature``;
            bundles record it in their description.
        pipeline_tag: The task's name on the Hugging Face hub; None: it has none.
    """

    name: ClassVar[str]
    location: ClassVar[str]
    prediction: ClassVar[str] = "vitsplit.tasks.prediction:Prediction"
    default_recipe: ClassVar[str | None] = None
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1}
    scores: ClassVar[Mapping[str, Score]]
    tiles: ClassVar[Literal["dense", "objects"] | None] = None
    shares_crops: ClassVar[bool] = False
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {}
    most_tuned: ClassVar[float] = 0.5
    num_classes: ClassVar[int] = 0
    answers_questions: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False
    pipeline_tag: ClassVar[str | None] = None

    format: str = "auto"
    """Layout of the data folder."""
    crop_size: Size = (512, 512)
    """Height and width of the training crops."""

    @classmethod
    def task_type(cls) -> Any:
        """The class of the task, a ``tasks.base.Task``."""
        return _import(cls.location)

    @classmethod
    def prediction_type(cls) -> type[Prediction]:
        """The class of the predictions."""
        found: type[Prediction] = _import(cls.prediction)
        return found

    @property
    def own_head(self) -> str | None:
        """The setting that makes the task build its own head (``Task.build_head``), not the method's; else None."""
        return None

    @property
    def included_model(self) -> IncludedModel | None:
        """The model other than the backbone that bundles include, trained; None: none. Adapters alone do not count."""
        return None

    @property
    def compares_features(self) -> bool:
        """Whether predictions compare frozen features with those in training (``tasks.base.ComparesFeatures``)."""
        return False

    @property
    def tile_size(self) -> tuple[int, int]:
        """Height and width of the training images, and so of the tiles of a large image."""
        return self.crop_size

    def with_crop(self, geometry: Any) -> Self:
        """Settings under a crop shared by several heads: common fields are taken from ``GeometryConfig``."""
        own = {field.name for field in dataclasses.fields(self)}
        shared = {each.name: getattr(geometry, each.name) for each in dataclasses.fields(geometry) if each.name in own}
        return dataclasses.replace(self, **shared, **self.without_own_augmentation)

    def for_tiles(self, tile: tuple[int, int]) -> Self:
        """Settings under which a tile of this size is neither resized nor cropped."""
        settings: dict[str, Any] = {"crop_size": tile, "image_scale": (max(tile), min(tile))}
        fields = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in settings.items() if name in fields})


def _import(location: str) -> Any:
    module, _, attribute = location.partition(":")
    return getattr(importlib.import_module(module), attribute)


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
    """The task of a bundle, without data; sufficient for prediction."""
    task: Task = config.task_type().from_description(config, description)
    return task


def check_description(config: TaskConfig, description: Any, where: str) -> None:
    """Validates the task description in an untrusted card.

    Args:
        config: The task's settings in the card.
        description: The description, as written by ``Task.describe``.
        where: The file and the key in it, for error messages.

    Raises:
        BundleError: The description is invalid.
    """
    try:
        config.task_type().check_description(config, description, where)
    except ConfigError as error:  # an invalid setting of the task
        raise BundleError(f"{where}: {error}") from error


def check_data(
    root: str | Path,
    task: str,
    *,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Report:
    """Reads every file of a data set and reports statistics and problems.

    Args:
        root: Folder of the data set.
        task: Name of a task.
        workers: Number of worker processes; 0: one per core.
        progress: Called with the number of files read so far and the total number of files.
        settings: Settings of the task for reading its files, such as ``format`` or ``depth_scale``; None: the default.

    Raises:
        ConfigError: The task, the format or a setting is unknown, or the task has no check.
        DataError: The folder is missing or its layout is not recognized.
    """
    kind = task_config(task)
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in fields:
            raise ConfigError(f"--{name.replace('_', '-')} {given[name]}: not a setting of {task}. Omit it.")
    if not hasattr(kind.task_type(), "check_files"):
        raise ConfigError(f"--task {task}: the task has no check of its data.")
    config = kind(**given)
    report: Report = kind.task_type().check_files(
        config, Path(root), workers or available_cores(), progress or (lambda done, total: None)
    )
    return report
