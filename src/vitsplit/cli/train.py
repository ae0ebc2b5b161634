"""``vitsplit train TASK``: train a head bundle."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli, print_settings
from vitsplit.cli.vqa_stages import NAMES, TASK, add_stage_flags, check_stage_flags, stage_config
from vitsplit.engine.heads import sharing_tasks
from vitsplit.engine.starting_point import starting_config, starting_heads
from vitsplit.errors import ConfigError
from vitsplit.tasks import TASKS

HEADS = "multi"
"""What stood in place of a task's name, with ``--task TASK=FOLDER``, before there was ``--head``."""
_HEAD = re.compile(r"(?:([^=:]*)=)?([^=:]+):(.+)", re.DOTALL)

DESCRIPTION = """\
Trains a head bundle for one task on a frozen backbone.

The data are a folder of images and labels; `vitsplit data check FOLDER` says whether it can be used. Without a
recipe the task's own for a laptop is taken. Every setting of the recipe can be changed by a flag: see below.

  vitsplit train segmentation --data my_data
  vitsplit train segmentation --data ADEChallengeData2016 --recipe ade20k-small --out runs/ade --batch-size 8
  vitsplit train segmentation --data my_data --out runs/first --resume

Several heads are trained together on the same images, with one pass of the backbone for all of them, by

  vitsplit train --head rooms=segmentation:my_rooms --head parts=segmentation:my_parts --head depth:my_depth

A setting is then that of all heads (--lr 1e-4), or with a head's name before it that of one (--depth.lr 3e-4). A head
without a name has its task's. Every head becomes a bundle of its own: RUN/best/rooms, RUN/best/depth. Images
are the same if their files have the same name, and place, in the heads' data sets.

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
        "learn",
        metavar="TASK",
        nargs="?",
        choices=[*TASKS.names(), HEADS],
        help=f"{', '.join(TASKS.names())}; omit it with --head",
    )
    parser.add_argument("--data", metavar="FOLDER", help="the data set (required)")
    parser.add_argument(
        "--head",
        metavar="[NAME=]TASK:FOLDER",
        action="append",
        default=[],
        help="once for every head that is trained together with others: its task and its data set",
    )
    parser.add_argument("--task", metavar="TASK=FOLDER", action="append", default=[], help=argparse.SUPPRESS)
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
    if any(word.partition("=")[0] == "--head" for word in argv) and HEADS not in argv:
        argv = [HEADS, *argv]  # or the value of a setting would be taken for the task
    options, rest = parser.parse_known_args(argv)
    if options.learn is None:
        parser.print_help()
        return 0 if options.help else 2
    if options.help:
        parser.print_help()
    check_stage_flags(options)
    prog = "vitsplit train" if options.learn == HEADS else f"vitsplit train {options.learn}"
    if options.stage == "both" and not options.help:
        return _both(options, rest, prog)
    configure = _several if options.learn == HEADS else _one
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
        raise ConfigError(f"--task {options.task[0]}: name heads, without a TASK, by --head TASK:FOLDER.")
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
        raise ConfigError("Missing required option --data FOLDER.")


def _several(options: argparse.Namespace, flags: list[str], prog: str) -> tuple[Any, Any] | None:
    """Settings and data of heads that share a crop; None where only help was asked for."""
    if options.data or options.recipe:
        given = f"--data {options.data}" if options.data else f"--recipe {options.recipe}"
        raise ConfigError(
            f"{given}: every head has its own data and starts from its task's recipe for a laptop. Give --head "
            "[NAME=]TASK:FOLDER for each, and change settings by flags, or give --config of another such run."
        )
    heads = named_heads(options.head + [_former(each) for each in options.task])
    resumed = options.out if options.resume else None
    tasks = {name: task for name, (task, _) in heads.items()} or {task: task for task in sharing_tasks()}
    base = starting_heads(tasks, config_file=options.config, resumed=resumed)
    if options.help:
        print_settings(base, prog=prog)
        return None
    if not heads:
        raise ConfigError("Missing required option --head [NAME=]TASK:FOLDER, such as --head depth:my_data.")
    return config_from_cli(base, flags, prog=prog), heads


def _former(given: str) -> str:
    """``depth=a`` of the option ``--task`` as ``depth:a`` of ``--head``."""
    task, equals, folder = given.partition("=")
    if not (task and equals and folder):
        raise ConfigError(f"--task {given}: give a task and its data as --head TASK:FOLDER, such as depth:my_data.")
    print(f"warning: --task {given} is --head {task}:{folder} now", file=sys.stderr)
    return f"{task}:{folder}"


def named_heads(given: list[str]) -> dict[str, tuple[str, Path]]:
    """``["rooms=segmentation:a", "depth:b"]`` as ``{"rooms": ("segmentation", a), "depth": ("depth", b)}``.

    Raises:
        ConfigError: A part is missing, a task cannot share a crop, or a name comes twice.
    """
    heads: dict[str, tuple[str, Path]] = {}
    for each in given:
        match = _HEAD.fullmatch(each)
        if match is None:
            raise ConfigError(f"--head {each}: give a task and its data as [NAME=]TASK:FOLDER, such as depth:my_data.")
        name, task, folder = match[2] if match[1] is None else match[1], match[2], match[3]
        if task not in sharing_tasks():
            raise ConfigError(
                f"--head {each}: '{task}' is no task that others are trained with. "
                f"Choose {' or '.join(sharing_tasks())}."
            )
        if name in heads:
            raise ConfigError(
                f"--head {each}: there is a head {name} already. Give this one another name: NAME={task}:FOLDER."
            )
        heads[name] = (task, Path(folder))
    return heads
