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
    """The settings that a stage starts from, or whichever the recipe is for where none is named.

    Args:
        stage: Name of the stage.
        recipe: Either stage's recipe, or what the two have in common (llava15-7b).
        config_file: A ``config.json``.
        resumed: The folder of the run that is resumed.
        start: The run whose connector to start with.
        both: Whether the run has both stages.

    Raises:
        ConfigError: As ``starting_config``, or there is no stage to resume.
    """
    if both and config_file is not None:
        raise ConfigError("--config holds the settings of one stage: give --recipe with --stage both.")
    if recipe is not None or config_file is not None:
        resumed = None
    elif both and resumed is not None and stage is not None:
        kept = _kept_settings(Path(resumed), stage)
        resumed = None if kept is None else str(kept)
    if stage is not None and not (config_file or resumed):
        recipe = stage_recipe(recipe, stage)
    config = starting_config(TASK, recipe=recipe, config_file=config_file, resumed=resumed)
    given: dict[str, Any] = {"stage": stage, "start_from": start}
    return override(config, {name: value for name, value in given.items() if value is not None})


def _kept_settings(out: Path, stage: str) -> Path | None:
    """The settings of a stage of two that go on; None in a run of a version that did not keep them."""
    kept = (stage_file(out, stage), out / stage / CONFIG_FILE)
    found = next((file for file in kept if file.is_file()), None)
    if found is None and not (out / NAMES[0] / CONFIG_FILE).is_file():
        raise ConfigError(
            f"{out} holds no stages to resume (no {kept[0].name}). If a start was stopped so early, nothing was "
            "trained: give its command again without --resume. Else check --out."
        )
    return found


def stage_recipe(recipe: str | None, stage: str) -> str:
    """The recipe of a stage: the one named, if it is that of a single stage, or the counterpart of its family."""
    name = recipe or "laptop-vqa"
    for family, pair in STAGES.items():
        if name == family or name in pair:
            return pair[NAMES.index(stage)]
    return name
