"""From a configuration and data to what a run trains, for one task and for several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitsplit.backbone import open_backbone
from vitsplit.backbone.frozen import Backbone
from vitsplit.bundle import save_bundle
from vitsplit.engine.config import TrainConfig
from vitsplit.engine.evaluation import SaveBundle
from vitsplit.errors import ConfigError
from vitsplit.methods.settings import backbone_settings, check_method
from vitsplit.model import build_model, build_multi_model
from vitsplit.tasks import open_task
from vitsplit.tasks.base import Task, TrainableTask
from vitsplit.tasks.model import Trainee
from vitsplit.tasks.multi.config import MultiConfig
from vitsplit.tasks.multi.task import MultiTask
from vitsplit.tasks.vqa.start import start_from
from vitsplit.tasks.vqa.task import VqaTask


class Assembly(NamedTuple):
    """The parts of a run.

    Attributes:
        backbone: The frozen model.
        task: What is learnt, opened on its data.
        model: What trains.
        save_bundle: Writes a head's present weights as a bundle.
    """

    backbone: Backbone
    task: TrainableTask
    model: Trainee
    save_bundle: SaveBundle


def assemble(config: TrainConfig[Any] | MultiConfig, data: str | Path | Mapping[str, str | Path]) -> Assembly:
    """Opens the data, then the backbone, and builds untrained heads.

    Raises:
        ConfigError: One folder was given for several tasks, or several for one.
        VitsplitError: The data or the weights cannot be used.
    """
    if isinstance(config, MultiConfig) and isinstance(data, Mapping):
        return _several(config, data)
    if isinstance(config, TrainConfig) and not isinstance(data, Mapping):
        return _one(config, Path(data))
    raise ConfigError(
        "A joint run takes one folder of data per task, by its name, and a run of one task takes one folder: the "
        "configuration is for the one and the data for the other."
    )


def _one(config: TrainConfig[Any], data: Path) -> Assembly:
    check_method(config)
    task = open_task(config, data)
    backbone = open_backbone(backbone_settings(config))
    model = build_model(config, backbone, task)
    if isinstance(task, VqaTask) and task.config.start_from is not None:
        start_from(task.config.start_from, model, backbone, task)

    def save(folder: Path, config: Any, metrics: dict[str, Any], head: str) -> None:
        save_bundle(folder, config=config, task=task, backbone=backbone, model=model, metrics=metrics)

    return Assembly(backbone, task, model, save)


def _several(config: MultiConfig, data: Mapping[str, str | Path]) -> Assembly:
    config.check()
    if config.heads().keys() != data.keys():
        raise ConfigError(f"The settings are for {', '.join(config.heads())}, and the data for {', '.join(data)}.")
    for name in config.heads():
        check_method(config.own(name))
        wanted = backbone_settings(config.own(name)).patch_size
        if wanted != config.backbone.patch_size:
            raise ConfigError(
                f"--{name}.method {config.own(name).method} wants patches of {wanted} pixels, and all heads of a joint "
                f"run have one backbone. Give it to all: --patch-size {wanted}."
            )
    tasks: dict[str, Task] = {name: open_task(config.own(name), Path(data[name])) for name in config.heads()}
    task: Any = MultiTask(config.geometry, tasks)
    backbone = open_backbone(config.backbone)
    model = build_multi_model(config, backbone, tasks)
    members = model.members()

    def save(folder: Path, config: Any, metrics: dict[str, Any], head: str) -> None:
        save_bundle(
            folder,
            config=config.own(head),
            task=tasks[head],
            backbone=backbone,
            model=members[head],
            metrics=metrics,
        )

    return Assembly(backbone, task, model, save)
