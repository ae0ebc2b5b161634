"""Builds the parts of a run (backbone, tasks and heads) from a configuration and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.bundle import save_bundle
from vitsplit.engine.run_bundles import SaveBundle
from vitsplit.engine.start_from import start_from
from vitsplit.errors import ConfigError
from vitsplit.heads import check_heads
from vitsplit.model import Model, backbone_settings, build_model, check_method, check_names
from vitsplit.tasks import open_task
from vitsplit.tasks.base import StartsFromRun, Task
from vitsplit.train_config import TrainConfig


class Assembly(NamedTuple):
    """The parts of a run.

    Attributes:
        backbone: The frozen model.
        tasks: The task of each head, opened on its data.
        model: The untrained heads.
        save_bundle: Writes a head's current weights as a bundle.
    """

    backbone: Backbone
    tasks: dict[str, Task]
    model: Model
    save_bundle: SaveBundle


def assemble(config: TrainConfig, data: Mapping[str, str | Path], *, choice: Any = None) -> Assembly:
    """Opens the data, then the backbone, and builds untrained heads.

    Args:
        config: The configuration.
        data: The path of each head's data set, by head name.
        choice: How ``--layers auto`` chose the layers of each head, for its bundles, see ``RunFolder.read_choice``.

    Raises:
        VitsplitError: Settings are incompatible, or the data or the weights cannot be used.
    """
    check_heads(config)
    check_names(config.heads)
    if config.heads.keys() != data.keys():
        raise ConfigError(f"The settings name the heads {', '.join(config.heads)}, the data {', '.join(data)}.")
    settings = _backbone_settings(config)
    tasks = open_tasks(config, data)
    backbone = open_backbone(settings)
    model = build_model(config, backbone, tasks)
    for name, task in tasks.items():
        if isinstance(task, StartsFromRun) and task.config.start_from is not None:
            start_from(task.config.start_from, model.heads[name], backbone, task)

    def save(folder: Path, config: TrainConfig, metrics: dict[str, Any], head: str) -> None:
        own = config.for_head(head)
        save_bundle(
            folder,
            config=own,
            task=tasks[head],
            backbone=backbone,
            head=model.heads[head],
            metrics=metrics,
            choice=(choice or {}).get(head),
        )

    return Assembly(backbone, tasks, model, save)


def open_tasks(config: TrainConfig, data: Mapping[str, str | Path]) -> dict[str, Task]:
    """The task of each head, opened on its data."""
    return {name: open_task(config.heads[name].task, Path(data[name])) for name in config.heads}


def _backbone_settings(config: TrainConfig) -> BackboneConfig:
    """The settings of the shared backbone, after a check that all methods can run on it."""
    required = {name: backbone_settings(config.for_head(name)) for name in config.heads}
    for name, settings in required.items():
        check_method(config.for_head(name))
        if settings != config.backbone and len(set(required.values())) > 1:
            raise ConfigError(
                f"--{name}.method {config.heads[name].method.name} needs patches of {settings.patch_size} pixels, but "
                f"all heads of a run share one backbone. Set it for all heads: --patch-size {settings.patch_size}."
            )
    return next(iter(required.values()))
