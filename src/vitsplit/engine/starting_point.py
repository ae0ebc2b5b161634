"""The configuration that a run starts from, before single settings are changed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vitsplit.engine.config import LoopConfig, TrainConfig
from vitsplit.engine.serialise import from_dict
from vitsplit.errors import ConfigError
from vitsplit.files import read_json, shown
from vitsplit.ranges import Opens, settings_of, with_value
from vitsplit.recipes import recipe as named_recipe
from vitsplit.tasks import TASKS, config_type, task_entry, task_name
from vitsplit.tasks.multi.config import HEAD_NAMES, MultiConfig

logger = logging.getLogger(__name__)

CONFIG_FILE, START_FILE = "config.json", ".start.json"
"""Settings in the folder of a run: resolved, once it stands; as they were given, before that."""
LAPTOP_STEPS, LAPTOP_BATCH_SIZE = 300, 8
"""Length of a joint run and its images per step, unless told otherwise."""


def starting_config(
    task: str,
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    resumed: str | Path | None = None,
) -> TrainConfig[Any]:
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
        config = named_recipe(recipe or task_entry(task).default_recipe)
        if task_name(config) != task:
            raise ConfigError(
                f"--recipe {recipe} is for {task_name(config)}, not for {task}. Use `vitsplit train "
                f"{task_name(config)}`, or another recipe (`vitsplit recipes` lists them)."
            )
        return config
    values = _read(config_file)
    _require_task(task, values, str(config_file))
    read: TrainConfig[Any] = from_dict(config_type(task), values, str(config_file))
    return _told(read, str(config_file)) if is_foreign else read


def starting_multi_config(
    tasks: Collection[str], *, config_file: str | Path | None = None, resumed: str | Path | None = None
) -> MultiConfig:
    """A joint run's settings: those of a file, of the run that goes on, or each task's own for a laptop.

    Args:
        tasks: Names of the tasks. Other heads of a file are left out.
        config_file: A ``config.json`` of a joint run. Folders in it that are written to are not taken: see ``_told``.
        resumed: The run that goes on; its settings are taken unless a file is named.

    Raises:
        ConfigError: There is no such task in a joint run, or the file cannot be read or has no head for a task.
    """
    for name in tasks:
        if name not in HEAD_NAMES:
            raise ConfigError(f"'{name}' is no task that others are trained with. Those are {', '.join(HEAD_NAMES)}.")
    recipes = {name: named_recipe(task_entry(name).default_recipe) for name in tasks}
    is_foreign = config_file is not None
    if config_file is None and resumed is not None:
        config_file = _config_of_run(resumed)
    if config_file is None:
        return MultiConfig.of(recipes, loop=LoopConfig(steps=LAPTOP_STEPS, batch_size=LAPTOP_BATCH_SIZE))
    config: MultiConfig = from_dict(MultiConfig, _read(config_file), str(config_file))
    return (_told(config, str(config_file)) if is_foreign else config).only(tasks)


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
        marks = [] if setting.value is None else setting.marks(Opens)
        if isinstance(setting.value, bool):
            if any(mark.leads_out(setting.value) for mark in marks):
                logger.warning("%s: %s is not followed: give the flag to use it", source, setting.flag)
                config = with_value(config, setting.place, False)
        elif any(mark.writes for mark in marks):
            logger.warning(
                "%s: %s %s is not followed: a file does not decide where something is written. Give the flag to use it",
                source, setting.flag, shown(setting.value, 1024),
            )  # fmt: skip
            config = with_value(config, setting.place, None)
        elif any(mark.leads_out(setting.value) for mark in marks):
            logger.warning("%s: reads %s from %s", source, setting.flag, shown(setting.value, 1024))
    return config


def _require_task(task: str, values: Any, source: str) -> None:
    """Refuses the settings of a joint run or of another task as such, and not for the first setting that is unknown."""
    if not isinstance(values, dict):
        return  # said when it is read
    if TASKS.keys() & values.keys():
        raise ConfigError(
            f"{source} is of a joint run, not of a run for {task} alone. Use `vitsplit train multi`, or another file."
        )
    given = values.get("task")
    fitting = [
        name
        for name, entry in TASKS.items()
        if isinstance(given, dict) and given.keys() <= {field.name for field in dataclasses.fields(entry.config)}
    ]
    if fitting and task not in fitting:
        raise ConfigError(
            f"{source} is of a run for {' or '.join(fitting)}, not for {task}. Use `vitsplit train {fitting[0]}`, or "
            "another file."
        )
