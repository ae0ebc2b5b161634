"""The two stages of visual question answering on the command line: ``--stage`` and ``--from``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes.starting_point import stage_file, starting_config
from vitsplit.recipes.vqa import STAGES
from vitsplit.train_config import CONFIG_FILE, TrainConfig

TASK = "vqa"
NAMES = ("align", "instruct")


def stage_config(
    stage: str | None,
    *,
    recipe: str | None = None,
    config_file: str | None = None,
    resumed: str | None = None,
    start: str | None = None,
    both: bool = False,
) -> TrainConfig:
    """The configuration that a stage starts from.

    Args:
        stage: Name of the stage; None: that of the recipe.
        recipe: The recipe of either stage, or the name of the pair (llava15-7b).
        config_file: A ``config.json``.
        resumed: Folder of the run to resume.
        start: The run whose connector to start from.
        both: Whether the run has both stages.

    Raises:
        ConfigError: See ``starting_config``; or there is no stage to resume.
    """
    if both and config_file is not None:
        raise ConfigError("--config has the settings of one stage only. Use --recipe with --stage both.")
    if recipe is not None or config_file is not None:
        resumed = None
    elif both and resumed is not None and stage is not None:
        saved = _saved_settings(Path(resumed), stage)
        resumed = None if saved is None else str(saved)
    if stage is not None and not (config_file or resumed):
        recipe = stage_recipe(recipe, stage)
    config = starting_config(TASK, recipe=recipe, config_file=config_file, resumed=resumed)
    given: dict[str, Any] = {"stage": stage, "start_from": start}
    return override(config, {name: value for name, value in given.items() if value is not None})


def _saved_settings(out: Path, stage: str) -> Path | None:
    """File of the saved settings of a stage to resume; None for a run of a version that did not save them."""
    candidates = (stage_file(out, stage), out / stage / CONFIG_FILE)
    found = next((file for file in candidates if file.is_file()), None)
    if found is None and not (out / NAMES[0] / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{out} has no stages to resume (no {candidates[0].name}). Check --out, or omit --resume to start training."
        )
    return found


def stage_recipe(recipe: str | None, stage: str) -> str:
    """The recipe of a stage: the given one, or its counterpart if it belongs to a pair."""
    name = recipe or "laptop-vqa"
    for family, pair in STAGES.items():
        if name == family or name in pair:
            return pair[NAMES.index(stage)]
    return name
