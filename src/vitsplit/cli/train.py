"""``vitsplit train TASK``: train a head bundle."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.tasks import TASKS, config_type, task_entry
from vitsplit.training.config import TrainConfig
from vitsplit.training.serialise import from_dict

DESCRIPTION = """\
Trains a head bundle for one task on a frozen backbone.

The data are a folder of images and labels; `vitsplit data check FOLDER` says whether it can be used. Without a
recipe the task's own for a laptop is taken. Every setting of the recipe can be changed by a flag: see below.

  vitsplit train segmentation --data my_data
  vitsplit train segmentation --data ADEChallengeData2016 --recipe ade20k-small --out runs/ade --batch-size 8
  vitsplit train segmentation --data my_data --out runs/first --resume
"""


def main(argv: list[str]) -> int:
    """Runs the verb; the exit status is 128 + the signal's number if a signal stopped the run."""
    parser = argparse.ArgumentParser(
        prog="vitsplit train",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("task", nargs="?", choices=list(TASKS), help="what to learn")
    parser.add_argument("--data", metavar="FOLDER", help="the data set (required)")
    parser.add_argument("--out", metavar="FOLDER", help="the run folder; default: a new one under runs/")
    parser.add_argument("--recipe", metavar="NAME", help="settings to start from: `vitsplit recipes` lists them")
    parser.add_argument("--config", metavar="FILE", help="settings to start from: a config.json of another run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, exactly where it stopped")
    parser.add_argument("-h", "--help", action="store_true", help="this text, and every setting with its default")
    options, rest = parser.parse_known_args(argv)
    if options.task is None:
        parser.print_help()
        return 0 if options.help else 2
    base = _base_config(options)
    if options.help:
        parser.print_help()
        print("\nsettings of this recipe:\n")
        config_from_cli(base, ["--help"])
        return 0
    if options.data is None:
        raise ConfigError("Which images? Give their folder with --data FOLDER.")
    config = config_from_cli(base, rest)
    from vitsplit import api

    result = api.train(config, data=options.data, out=options.out, resume=options.resume)
    if result.stopped_by is not None:
        import signal

        return 128 + int(getattr(signal, result.stopped_by))
    print(f"Try it:  vitsplit predict {result.run} IMAGE --out predictions", file=sys.stderr)
    return 0


def _base_config(options: argparse.Namespace) -> TrainConfig[Any]:
    """The settings that flags change: those of the run to resume, of ``--config``, or of a recipe."""
    file = Path(options.config) if options.config else None
    if options.resume and options.out and file is None and options.recipe is None:
        file = Path(options.out) / "config.json"
    if file is None:
        return recipe(options.recipe or task_entry(options.task).default_recipe)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as a configuration ({error}).") from error
    config: TrainConfig[Any] = from_dict(config_type(options.task), values, str(file))
    return config
