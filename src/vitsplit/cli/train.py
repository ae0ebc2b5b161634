"""``vitsplit train TASK``: train a head bundle."""

from __future__ import annotations

import argparse
import sys

from vitsplit.cli.options import config_from_cli
from vitsplit.errors import ConfigError
from vitsplit.tasks import TASKS
from vitsplit.training.starting_point import starting_config

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
    base = starting_config(
        options.task,
        recipe=options.recipe,
        config_file=options.config,
        resumed=options.out if options.resume else None,
    )
    if options.help:
        parser.print_help()
        print("\nsettings of this recipe:\n")
        config_from_cli(base, ["--help"], prog=f"vitsplit train {options.task}")
        return 0
    if options.data is None:
        raise ConfigError("Which images? Give their folder with --data FOLDER.")
    config = config_from_cli(base, rest, prog=f"vitsplit train {options.task}")
    from vitsplit import api

    result = api.train(config, data=options.data, out=options.out, resume=options.resume)
    if result.stopped_by is not None:
        import signal

        return 128 + int(getattr(signal, result.stopped_by))
    print(f"Try it:  vitsplit predict {result.run} IMAGE --out predictions", file=sys.stderr)
    return 0
