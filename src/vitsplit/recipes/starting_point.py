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
"""Default steps and batch size of runs with several heads, and of tasks without a recipe."""


def starting_config(
    task: str,
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    resumed: str | Path | None = None,
) -> TrainConfig:
    """The settings of a recipe, of a file, of a resumed run, or of the task's laptop recipe.

    A file may be untrusted: paths in it that are read are logged, and paths that are written to are ignored. The file
    of a resumed run is trusted.

    Args:
        task: Name of the task.
        recipe: Name of a recipe.
        config_file: A ``config.json``, see ``_without_output_paths``.
        resumed: Folder of the resumed run, or the file with its settings; used without a recipe and a file.

    Raises:
        ConfigError: A recipe and a file are both given, the recipe does not exist, the file cannot be read, or either
            is for another task.
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
    return _without_output_paths(read, str(config_file)) if is_foreign else read


def laptop_config(task: str) -> TrainConfig:
    """The task's default recipe, or the defaults of its settings for a short run.

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
    """Settings of several heads: those of a file, of the resumed run, or of each task's default recipe.

    Args:
        tasks: The tasks of the heads, by the heads' names. Other heads of a file are dropped.
        config_file: A ``config.json`` of such a run, see ``_without_output_paths``.
        resumed: Folder of the resumed run; used without a file.

    Raises:
        ConfigError: A task does not support shared crops, a name is invalid, or the file cannot be read or lacks a
            head.
    """
    for name, task in tasks.items():
        check_head_name(name)
        if task not in sharing_tasks():
            raise ConfigError(
                f"--head {name}={task}: this task cannot be trained together with others. Choose "
                f"{' or '.join(sharing_tasks())}."
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
            f"{config_file} is the configuration of a run with a single head. Use `vitsplit train TASK --data FOLDER`, "
            "or another file."
        )
    for name, task in tasks.items():
        if name not in config.heads:
            raise ConfigError(f"{config_file} has no head {name}, only {', '.join(config.heads)}.")
        if config.heads[name].task.name != task:
            raise ConfigError(f"{config_file}: its head {name} is for {config.heads[name].task.name}, not {task}.")
    config = dataclasses.replace(config, heads={name: config.heads[name] for name in tasks})
    return _without_output_paths(config, str(config_file)) if is_foreign else config


def stage_file(root: str | Path, stage: str) -> Path:
    """The file with the settings of a stage, in the folder of both stages of visual question answering."""
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
            f"{run} holds no run to resume (no {CONFIG_FILE}). A run that was stopped this early has not trained: "
            "start it again without --resume. Otherwise check --out."
        )
    raise ConfigError(f"{run} holds no run to resume: the folder does not exist. Check --out.")


def _read(config_file: str | Path) -> Any:
    return read_json(config_file, error=ConfigError, advice="Give a config.json that a run wrote.")


def _without_output_paths(config: Any, source: str) -> Any:
    """Removes paths that are written to from the settings of a file, and logs those that are read."""
    for setting in list(settings_of(config)):
        if setting.opens is None or setting.value is None:
            continue
        if isinstance(setting.value, bool):
            if setting.opens.leads_out(setting.value):
                logger.warning("%s: %s is ignored. Give the flag to use it", source, setting.flag)
                config = with_value(config, setting.place, False)
        elif setting.opens.writes:
            logger.warning(
                "%s: %s %s is ignored: a file cannot set where files are written. Give the flag to use it",
                source, setting.flag, shown(setting.value, 1024),
            )  # fmt: skip
            config = with_value(config, setting.place, None)
        elif setting.opens.leads_out(setting.value):
            logger.warning("%s: reads %s from %s", source, setting.flag, shown(setting.value, 1024))
    return config


def _require_task(task: str, values: Any, source: str) -> None:
    """Refuses the settings of several heads or of another task with a specific message."""
    values = upgraded_config(values, task)
    heads = values.get("heads") if isinstance(values, dict) else None
    if not isinstance(heads, dict):
        return  # refused when it is read
    if values.get("geometry") is not None or len(heads) != 1:
        raise ConfigError(
            f"{source} is the configuration of a run with several heads, not of one for {task}. Use `vitsplit train "
            "--head NAME=TASK:FOLDER`, or another file."
        )
    (head,) = heads.values()
    given = head.get("task") if isinstance(head, dict) else None
    if not isinstance(given, dict):
        return  # refused when it is read
    # Files of earlier versions do not record the task.
    names = given.keys() - {KIND}
    fitting = [
        name
        for name in TASKS.names()
        if given.get(KIND) in (task, name) and names <= {field.name for field in dataclasses.fields(task_config(name))}
    ]
    if fitting and task not in fitting:
        raise ConfigError(
            f"{source} is the configuration of a run for {' or '.join(fitting)}, not for {task}. Use `vitsplit train "
            f"{fitting[0]}`, or another file."
        )
