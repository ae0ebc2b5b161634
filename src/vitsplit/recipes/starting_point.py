"""The configuration that a run starts from, before single settings are changed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitsplit.config import settings_of, with_value
from vitsplit.errors import ConfigError
from vitsplit.files import read_json, shown
from vitsplit.heads import check_head_name, sharing_crops, sharing_tasks
from vitsplit.recipes import recipe as named_recipe
from vitsplit.saved_config import KIND, config_from_dict, upgraded_config
from vitsplit.tasks import TASKS, task_config
from vitsplit.train_config import CONFIG_FILE, START_FILE, GeometryConfig, LoopConfig, TrainConfig, one_head

logger = logging.getLogger(__name__)

LAPTOP_STEPS, LAPTOP_BATCH_SIZE = 300, 8
"""Length of a run of heads on one crop, and its images per step, unless told otherwise."""


def starting_config(
    task: str,
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    resumed: str | Path | None = None,
) -> TrainConfig:
    """A recipe's settings, those of a file, those of the run that goes on, or the task's own for a laptop.

    A file may come from a stranger: what it names to be read is told in the log, and what it names to be written to is
    not followed. The run that goes on is the user's own, and is followed.

    Args:
        task: Name of the task.
        recipe: Name of a recipe.
        config_file: A ``config.json``. Folders in it that are written to are not taken: see ``_told``.
        resumed: The run that goes on, or the file that keeps its settings; they are taken unless a recipe or a file is
            named.

    Raises:
        ConfigError: A recipe and a file are both named, there is no such recipe, the file cannot be read, or either is
            for another task.
    """
    if recipe is not None and config_file is not None:
        raise ConfigError("Settings can start from a recipe or from a file, not from both: give --recipe or --config.")
    is_foreign = config_file is not None
    if recipe is None and config_file is None and resumed is not None:
        config_file = _config_of_run(resumed)
    if config_file is None:
        config = named_recipe(recipe) if recipe is not None else laptop_config(task)
        if config.task.name != task:
            raise ConfigError(
                f"--recipe {recipe} is for {config.task.name}, not for {task}. Use `vitsplit train "
                f"{config.task.name}`, or another recipe (`vitsplit recipes` lists them)."
            )
        return config
    values = _read(config_file)
    _require_task(task, values, str(config_file))
    read = config_from_dict(values, str(config_file), task=task)
    return _told(read, str(config_file)) if is_foreign else read


def laptop_config(task: str) -> TrainConfig:
    """What a run of a task starts from where nothing is named: its recipe for a laptop, or its defaults, for as long.

    Raises:
        ConfigError: There is no such task.
    """
    kind = task_config(task)
    if kind.default_recipe is not None:
        return named_recipe(kind.default_recipe)
    return one_head(task=kind(), loop=LoopConfig(steps=LAPTOP_STEPS, batch_size=LAPTOP_BATCH_SIZE))


def starting_heads(
    tasks: Mapping[str, str], *, config_file: str | Path | None = None, resumed: str | Path | None = None
) -> TrainConfig:
    """Settings of heads on one crop: those of a file, of the run that is resumed, or each task's own for a laptop.

    Args:
        tasks: The tasks of the heads, by the heads' names. Other heads of a file are dropped.
        config_file: A ``config.json`` of such a run. Folders in it that are written to are not taken: see ``_told``.
        resumed: The run that goes on; its settings are taken unless a file is named.

    Raises:
        ConfigError: A task cannot share a crop, a name cannot be a head's, or the file cannot be read or has no such
            head.
    """
    for name, task in tasks.items():
        check_head_name(name)
        if task not in sharing_tasks():
            raise ConfigError(
                f"'{task}' is no task that others are trained with. Choose {' or '.join(sharing_tasks())}."
            )
    recipes = {name: laptop_config(task) for name, task in tasks.items()}
    is_foreign = config_file is not None
    if config_file is None and resumed is not None:
        config_file = _config_of_run(resumed)
    if config_file is None:
        loop = LoopConfig(steps=LAPTOP_STEPS, batch_size=LAPTOP_BATCH_SIZE)
        return sharing_crops(recipes, GeometryConfig(), loop=loop)
    config = config_from_dict(_read(config_file), str(config_file), task=next(iter(tasks.values())))
    if config.geometry is None:
        raise ConfigError(
            f"{config_file} is of a run of one head with its task's own augmentation. Use `vitsplit train TASK --data "
            "FOLDER`, or another file."
        )
    for name, task in tasks.items():
        if name not in config.heads:
            raise ConfigError(f"{config_file} has no head {name}, only {', '.join(config.heads)}.")
        if config.heads[name].task.name != task:
            raise ConfigError(f"{config_file}: its head {name} is for {config.heads[name].task.name}, not {task}.")
    config = dataclasses.replace(config, heads={name: config.heads[name] for name in tasks})
    return _told(config, str(config_file)) if is_foreign else config


def stage_file(root: str | Path, stage: str) -> Path:
    """Where both stages of visual question answering keep a stage's settings from their start on, in their folder."""
    return Path(root) / f"{stage}.json"


def _config_of_run(run: str | Path) -> Path:
    run = Path(run)
    if run.is_file():
        return run
    for name in (CONFIG_FILE, START_FILE):
        if (run / name).is_file():
            return run / name
    if run.is_dir():
        raise ConfigError(
            f"{run} holds no run to resume (no {CONFIG_FILE}). If a start was stopped so early, nothing was trained: "
            "give its command again without --resume. Else check --out."
        )
    raise ConfigError(f"{run} holds no run to resume: there is no such folder. Check --out.")


def _read(config_file: str | Path) -> Any:
    return read_json(config_file, error=ConfigError, advice="Give a config.json that a run wrote.")


def _told(config: Any, source: str) -> Any:
    """The settings of a file as they are followed: what is read elsewhere is told, and nothing is written elsewhere."""
    for setting in list(settings_of(config)):
        if setting.opens is None or setting.value is None:
            continue
        if isinstance(setting.value, bool):
            if setting.opens.leads_out(setting.value):
                logger.warning("%s: %s is not followed: give the flag to use it", source, setting.flag)
                config = with_value(config, setting.place, False)
        elif setting.opens.writes:
            logger.warning(
                "%s: %s %s is not followed: a file does not decide where something is written. Give the flag to use it",
                source, setting.flag, shown(setting.value, 1024),
            )  # fmt: skip
            config = with_value(config, setting.place, None)
        elif setting.opens.leads_out(setting.value):
            logger.warning("%s: reads %s from %s", source, setting.flag, shown(setting.value, 1024))
    return config


def _require_task(task: str, values: Any, source: str) -> None:
    """Refuses settings of heads on one crop or of another task as such, and not for the first unknown setting."""
    values = upgraded_config(values, task)
    heads = values.get("heads") if isinstance(values, dict) else None
    if not isinstance(heads, dict):
        return  # said when it is read
    if values.get("geometry") is not None or len(heads) != 1:
        raise ConfigError(
            f"{source} is of heads that share a crop, not of a run for {task} alone. Use `vitsplit train --head "
            "NAME=TASK:FOLDER`, or another file."
        )
    (head,) = heads.values()
    given = head.get("task") if isinstance(head, dict) else None
    if not isinstance(given, dict):
        return  # said when it is read
    # A file of an earlier version does not say its task.
    names = given.keys() - {KIND}
    fitting = [
        name
        for name in TASKS.names()
        if given.get(KIND) in (task, name) and names <= {field.name for field in dataclasses.fields(task_config(name))}
    ]
    if fitting and task not in fitting:
        raise ConfigError(
            f"{source} is of a run for {' or '.join(fitting)}, not for {task}. Use `vitsplit train {fitting[0]}`, or "
            "another file."
        )
