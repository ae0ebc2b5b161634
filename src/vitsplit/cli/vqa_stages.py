"""The two stages of visual question answering on the command line: ``--stage`` and ``--from``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli
from vitsplit.engine.starting_point import CONFIG_FILE, stage_file, starting_config
from vitsplit.errors import ConfigError
from vitsplit.recipes.vqa import STAGES

TASK = "vqa"
NAMES = ("align", "instruct")


def add_stage_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--stage`` and ``--from``."""
    parser.add_argument(
        "--stage",
        choices=[*NAMES, "both"],
        help="of vqa: train the connector alone (align), the language model with it (instruct), or one after the other "
        "(both), each with its own recipe's settings; runs are then OUT/align and OUT/instruct",
    )
    parser.add_argument("--from", dest="start", metavar="RUN", help="of vqa: the run whose connector to start with")


def check_stage_flags(options: argparse.Namespace) -> None:
    """Refuses stages of another task, and what does not go with both.

    Raises:
        ConfigError: Names the flag.
    """
    if options.learn != TASK and (options.stage or options.start):
        flag = "--stage" if options.stage else "--from"
        raise ConfigError(f"{flag} goes with `vitsplit train {TASK}`; other tasks are trained in one stage.")
    if options.stage == "both" and options.config:
        raise ConfigError("--config holds the settings of one stage: give --recipe with --stage both.")


def stage_config(options: argparse.Namespace, flags: list[str], stage: str | None, prog: str) -> Any:
    """The settings of a stage, or of whichever the recipe is for where none was named.

    ``--recipe`` may name either stage's recipe, or what the two have in common (llava15-7b).
    """
    recipe, config_file, resumed = options.recipe, options.config, None
    if options.resume and recipe is None and config_file is None:
        if options.stage != "both":
            resumed = options.out
        elif options.out is not None and stage is not None:
            resumed = _kept_settings(Path(options.out), stage)
    if stage is not None and not (config_file or resumed):
        recipe = stage_recipe(recipe, stage)
    base = starting_config(TASK, recipe=recipe, config_file=config_file, resumed=resumed)
    given = ["--stage", stage] if stage is not None else []
    given += ["--start-from", options.start] if options.start is not None else []
    return config_from_cli(base, [*given, *flags], prog=prog)


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
