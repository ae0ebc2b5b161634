"""The configuration that a run starts from, before single settings are changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe as named_recipe
from vitsplit.tasks import config_type, task_entry
from vitsplit.training.config import TrainConfig
from vitsplit.training.serialise import from_dict


def starting_config(
    task: str,
    *,
    recipe: str | None = None,
    config_file: str | Path | None = None,
    resumed: str | Path | None = None,
) -> TrainConfig[Any]:
    """A recipe's settings, those of a file, those of the run that goes on, or the task's own for a laptop.

    Args:
        task: Name of the task.
        recipe: Name of a recipe.
        config_file: A ``config.json``.
        resumed: The run that goes on; its settings are taken unless a recipe or a file is named.

    Raises:
        ConfigError: A recipe and a file are both named, there is no such recipe, or the file cannot be read.
    """
    if recipe is not None and config_file is not None:
        raise ConfigError("Settings can start from a recipe or from a file, not from both: give --recipe or --config.")
    if recipe is None and config_file is None and resumed is not None:
        config_file = Path(resumed) / "config.json"
        if not config_file.is_file():
            raise ConfigError(f"{resumed} holds no run to resume (no config.json). Check --out.")
    if config_file is None:
        return named_recipe(recipe or task_entry(task).default_recipe)
    try:
        values = json.loads(Path(config_file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config_file}: cannot be read as a configuration ({error}).") from error
    config: TrainConfig[Any] = from_dict(config_type(task), values, str(config_file))
    return config
