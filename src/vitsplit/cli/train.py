"""``vitsplit train TASK``: train a head bundle."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from vitsplit.cli.multi_options import multi_config_from_cli, print_settings
from vitsplit.cli.options import config_from_cli
from vitsplit.cli.vqa_stages import NAMES, TASK, add_stage_flags, check_stage_flags, stage_config
from vitsplit.engine.starting_point import starting_config, starting_multi_config
from vitsplit.errors import ConfigError
from vitsplit.tasks import TASKS
from vitsplit.tasks.multi.config import HEAD_NAMES

MULTI = "multi"
"""What stands in place of a task's name where several heads are trained together."""

DESCRIPTION = """\
Trains a head bundle for one task on a frozen backbone.

The data are a folder of images and labels; `vitsplit data check FOLDER` says whether it can be used. Without a
recipe the task's own for a laptop is taken. Every setting of the recipe can be changed by a flag: see below.

  vitsplit train segmentation --data my_data
  vitsplit train segmentation --data ADEChallengeData2016 --recipe ade20k-small --out runs/ade --batch-size 8
  vitsplit train segmentation --data my_data --out runs/first --resume

Several heads are trained together on the same images, with one pass of the backbone for all of them, by

  vitsplit train multi --task segmentation=my_data --task depth=my_depth --out runs/both

A setting is then that of all heads (--lr 1e-4), or with a task's name before it that of one (--depth.lr 3e-4). Every
head becomes a bundle of its own: runs/both/best/segmentation and runs/both/best/depth.

Visual question answering is trained in one stage or in two:

  vitsplit train vqa --data my_questions
  vitsplit train vqa --data my_questions --stage both --out runs/ask
  vitsplit train vqa --data my_questions --stage instruct --from runs/ask/align --out runs/again
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
    parser.add_argument(
        "learn", metavar="TASK", nargs="?", choices=[*TASKS, MULTI], help=f"{', '.join(TASKS)} or {MULTI}"
    )
    parser.add_argument("--data", metavar="FOLDER", help="the data set (required)")
    parser.add_argument(
        "--task",
        metavar="TASK=FOLDER",
        action="append",
        default=[],
        help=f"with {MULTI}, once for every task: what to learn from which data set",
    )
    parser.add_argument("--out", metavar="FOLDER", help="the run folder; default: a new one under runs/")
    parser.add_argument("--recipe", metavar="NAME", help="settings to start from: `vitsplit recipes` lists them")
    parser.add_argument("--config", metavar="FILE", help="settings to start from: a config.json of another run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, exactly where it stopped")
    parser.add_argument(
        "--allow-changed-data",
        action="store_true",
        help="resume although files of the data have changed (names, sizes, times); what has is told",
    )
    parser.add_argument(
        "--layers",
        choices=["recipe", "auto"],
        default="recipe",
        help="K_t and prior layers: the recipe's, or (auto) chosen from up to 64 training images before the run, as "
        "`vitsplit analyze layers` does; the choice is told and stands in config.json",
    )
    add_stage_flags(parser)
    parser.add_argument("-h", "--help", action="store_true", help="this text, and every setting with its default")
    options, rest = parser.parse_known_args(argv)
    if options.learn is None:
        parser.print_help()
        return 0 if options.help else 2
    if options.help:
        parser.print_help()
    check_stage_flags(options)
    prog = f"vitsplit train {options.learn}"
    if options.stage == "both" and not options.help:
        return _both(options, rest, prog)
    configure = _several if options.learn == MULTI else _one
    chosen = configure(options, rest, prog)
    if chosen is None:
        return 0
    config, data = chosen
    from vitsplit import api

    result = api.train(
        config,
        data=data,
        out=options.out,
        resume=options.resume,
        allow_changed_data=options.allow_changed_data,
        layers=options.layers,
    )
    return _ended(options.learn, result, config)


def _ended(task: str, result: Any, config: Any) -> int:
    """Says how to use what was trained; returns the exit status."""
    if result.stopped_by is not None:
        import signal

        return 128 + int(getattr(signal, result.stopped_by))
    use = '--ask "What is this?"' if task == TASK else "--out predictions"
    # What a bundle's card names is not opened: the user gives it again.
    given = {"--weights": config.backbone.weights}
    if task == TASK:
        given["--language-weights"] = config.task.language_weights
    use += "".join(f" {flag} {shlex.quote(str(path))}" for flag, path in given.items() if path is not None)
    print(f"Try it:  vitsplit predict {result.run} IMAGE {use}", file=sys.stderr)
    return 0


def _one(options: argparse.Namespace, flags: list[str], prog: str) -> tuple[Any, Any] | None:
    """Settings and data of a run of one task; None where only help was asked for."""
    if options.task:
        raise ConfigError(f"--task {options.task[0]} goes with `vitsplit train {MULTI}`, for several heads at once.")
    if options.learn == TASK and not options.help:
        _require_data(options)
        return stage_config(options, flags, options.stage, prog), options.data
    resumed = options.out if options.resume else None
    base = starting_config(options.learn, recipe=options.recipe, config_file=options.config, resumed=resumed)
    if options.help:
        print("\nsettings of this recipe:\n")
        config_from_cli(base, ["--help"], prog=prog)
    _require_data(options)
    return config_from_cli(base, flags, prog=prog), options.data


def _both(options: argparse.Namespace, flags: list[str], prog: str) -> int:
    """Both stages of a run for vqa, one after the other."""
    _require_data(options)
    if options.layers == "auto":
        raise ConfigError(
            "--layers auto chooses for one run, and both stages must have the same layers: let `vitsplit analyze "
            "layers` choose, and give the flags that it prints."
        )
    configs = [stage_config(options, flags, stage, prog) for stage in NAMES]
    from vitsplit import api

    result = api.train_stages(
        *configs,
        data=options.data,
        out=options.out,
        resume=options.resume,
        allow_changed_data=options.allow_changed_data,
    )
    return _ended(options.learn, result, configs[-1])


def _require_data(options: argparse.Namespace) -> None:
    if options.data is None:
        raise ConfigError("Which images? Give their folder with --data FOLDER.")


def _several(options: argparse.Namespace, flags: list[str], prog: str) -> tuple[Any, Any] | None:
    """Settings and data of a joint run; None where only help was asked for."""
    if options.data or options.recipe:
        given = f"--data {options.data}" if options.data else f"--recipe {options.recipe}"
        raise ConfigError(
            f"{given}: every head of a joint run has its own data and starts from its task's recipe for a laptop. Give "
            "--task TASK=FOLDER for each, and change settings by flags, or give --config of another joint run."
        )
    folders = task_folders(options.task)
    resumed = options.out if options.resume else None
    base = starting_multi_config(folders or HEAD_NAMES, config_file=options.config, resumed=resumed)
    if options.help:
        print_settings(base, prog=prog)
        return None
    if not folders:
        raise ConfigError(
            "Which tasks, and which images? Give --task TASK=FOLDER for each, such as --task depth=my_data."
        )
    return multi_config_from_cli(base, flags, prog=prog), folders


def task_folders(given: list[str]) -> dict[str, Path]:
    """``["depth=a", ...]`` as a mapping.

    Raises:
        ConfigError: A part is missing, a task does not exist or comes twice.
    """
    folders: dict[str, Path] = {}
    for each in given:
        task, _, folder = each.partition("=")
        if not folder:
            raise ConfigError(f"--task {each}: give a task and its data as TASK=FOLDER, such as depth=my_data.")
        if task not in HEAD_NAMES:
            raise ConfigError(
                f"--task {each}: '{task}' is no task that others are trained with. Those are {', '.join(HEAD_NAMES)}."
            )
        if task in folders:
            raise ConfigError(f"--task {each}: {task} has {folders[task]} already. A joint run has one head per task.")
        folders[task] = Path(folder)
    return folders
