"""``vitsplit train TASK``: train a head bundle, or several heads on the same images."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from vitsplit.cli.flags import FromArgv
from vitsplit.cli.values import Switch
from vitsplit.cli.vqa_stages import NAMES, TASK, stage_config
from vitsplit.cli.words import leading_arguments, value_of, values_of
from vitsplit.errors import ConfigError
from vitsplit.heads import sharing_tasks
from vitsplit.recipes.starting_point import starting_config, starting_heads
from vitsplit.tasks import TASKS
from vitsplit.train_config import TrainConfig

HEADS = "multi"
"""Placeholder of the task in former versions, with ``--task TASK=FOLDER`` instead of ``--head``."""
_HEAD = re.compile(r"(?:([^=:]*)=)?([^=:]+):(.+)", re.DOTALL)


def _starting_points(argv: Sequence[str]) -> tuple[TrainConfig, ...]:
    """The configurations that flags change: of a run, or of both stages of a run; none without a task."""
    task = next(iter(leading_arguments(argv)), "")
    given = {"recipe": value_of(argv, "--recipe"), "config_file": value_of(argv, "--config")}
    resumed = value_of(argv, "--out") if "--resume" in argv else None
    heads = named_heads(values_of(argv, "--head"), values_of(argv, "--task"))
    if heads or task == HEADS:
        tasks = {name: task for name, (task, _) in heads.items()} or {task: task for task in sharing_tasks()}
        return (starting_heads(tasks, config_file=given["config_file"], resumed=resumed),)
    if task == TASK:
        stage = value_of(argv, "--stage")
        stages = NAMES if stage == "both" else (stage,)
        start = value_of(argv, "--from")
        return tuple(stage_config(each, start=start, resumed=resumed, both=stage == "both", **given) for each in stages)
    return (starting_config(task, **given, resumed=resumed),) if task else ()


def train(
    task_name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]] = "",
    /,
    *,
    data: Path | None = None,
    head: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    out: Path | None = None,
    recipe: str | None = None,
    config: str | None = None,
    resume: Switch = False,
    allow_changed_data: Switch = False,
    layers: Literal["recipe", "auto"] = "recipe",
    max_minutes: Annotated[float, Field(gt=0, le=1e6)] | None = None,
    max_head_gmacs: Annotated[float, Field(gt=0, le=1e9)] | None = None,
    stage: Literal["align", "instruct", "both"] | None = None,
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    configs: Annotated[tuple[TrainConfig, ...], FromArgv(_starting_points)] = (),
) -> int:
    """Train a head bundle for one task on a frozen backbone, or several heads on the same images.

    A data set is a folder of images and labels; `vitsplit data check FOLDER` validates it. The default recipe is the
    task's laptop recipe. Every setting of the recipe can be changed by a flag, see vitsplit train TASK --help.

    Several heads are trained together with one shared pass of the backbone. A flag then applies to all heads
    (--lr 1e-4), or to one head if its name is put before it (--depth.lr 3e-4). The default name of a head is its task.
    Each head is saved as a bundle: RUN/best/rooms, RUN/best/depth. Images are shared by data sets if their files have
    the same relative path.

    Visual question answering is trained in one or two stages.

    The exit status is 128 + the signal number if a signal stopped the run.

    Examples:
        vitsplit train segmentation --data my_data
        vitsplit train segmentation --data ADEChallengeData2016 --recipe ade20k-small --out runs/ade --batch-size 8
        vitsplit train segmentation --data my_data --layers auto --max-minutes 30 --out runs/auto
        vitsplit train segmentation --data my_data --out runs/first --resume
        vitsplit train --head rooms=segmentation:my_rooms --head parts=segmentation:my_parts --head depth:my_depth
        vitsplit train vqa --data my_questions
        vitsplit train vqa --data my_questions --stage both --out runs/ask
        vitsplit train vqa --data my_questions --stage instruct --from runs/ask/align --out runs/again

    Args:
        task_name: segmentation, depth, detection or vqa; omit it with --head.
        data: The data set.
        head: Name, task and data set of a head as [NAME=]TASK:FOLDER; repeated for each of several heads.
        out: The run folder; None: a new one under runs/.
        recipe: Recipe to start from, see `vitsplit recipes`.
        config: Configuration to start from: the config.json of another run.
        resume: Resume the run in --out, with the same result as an uninterrupted run.
        allow_changed_data: Resume although files of the data set have changed (names, sizes, times); changes are
            logged.
        layers: K_t and the tuning of the copied blocks: those of the recipe, or (auto) those that short runs on the
            training data choose; the last of them is continued. They take at most a fifth of --max-minutes or, without
            it, of the steps.
        max_minutes: Set the number of steps so that training takes this time here, with the choice of layers and
            without evaluations.
        max_head_gmacs: With --layers auto: the most multiply-adds, in 10^9 per image, that one more head may take on a
            shared pass.
        stage: For vqa: train the connector (align), the connector and the language model (instruct), or one stage after
            the other (both), each with its own recipe, in OUT/align and OUT/instruct.
        start: For vqa: the run whose connector to start from.
        task: Former name of --head.
        configs: Configurations of the run.
    """
    heads = named_heads(head, task)
    for each in task:
        print(f"warning: --task {each} has been renamed to --head {_convert_former(each)}", file=sys.stderr)
    if task_name != TASK and (stage or start):
        flag = "--stage" if stage else "--from"
        raise ConfigError(f"{flag} requires the task {TASK}; other tasks are trained in one stage.")
    if not configs and task_name:
        raise ConfigError(f"The task must precede flags: vitsplit train {task_name} --data ...")
    if not configs:
        raise ConfigError(f"Missing required TASK ({', '.join(TASKS.names())}), or --head [NAME=]TASK:FOLDER.")
    if heads:
        if task_name not in ("", HEADS):
            raise ConfigError(f"{task_name} and --head {', '.join(heads)} were both given. Give one of them.")
        if data or recipe:
            given = f"--data {data}" if data else f"--recipe {recipe}"
            raise ConfigError(
                f"{given} cannot be combined with --head: each head has its own data set (--head [NAME=]TASK:FOLDER) "
                "and starts from its task's laptop recipe. Change settings by flags or --config."
            )
    elif task_name == HEADS:
        raise ConfigError("Missing required option --head [NAME=]TASK:FOLDER, such as --head depth:my_data.")
    elif data is None:
        raise ConfigError("Missing required option --data FOLDER.")
    from vitsplit import api

    options: dict[str, Any] = {
        "data": heads or data,
        "out": out,
        "resume": resume,
        "allow_changed_data": allow_changed_data,
    }
    if stage == "both":
        refused = {"--layers auto": layers == "auto", "--max-minutes": max_minutes, "--max-head-gmacs": max_head_gmacs}
        for flag in (flag for flag, value in refused.items() if value):
            raise ConfigError(f"{flag} is not supported with --stage both. Train one stage after the other.")
        result = api.train_stages(*configs, **options)
    else:
        result = api.train(configs[0], layers=layers, max_minutes=max_minutes, max_head_gmacs=max_head_gmacs, **options)
    return _report_result(task_name, result, configs[-1])


def _report_result(task: str, result: Any, config: TrainConfig) -> int:
    """Prints how to use the result; returns the exit status."""
    if result.stopped_by is not None:
        return 128 + int(getattr(signal, result.stopped_by))
    use = '--ask "What is this?"' if task == TASK else "--out predictions"
    # Paths in a bundle's card are not opened, so they must be given again.
    given = {"--weights": config.backbone.weights}
    if task == TASK:
        given["--language-weights"] = config.task.language_weights
    use += "".join(f" {flag} {shlex.quote(str(path))}" for flag, path in given.items() if path is not None)
    print(f"Try it:  vitsplit predict {result.run} IMAGE {use}", file=sys.stderr)
    return 0


def named_heads(given: Sequence[str], former: Sequence[str] = ()) -> dict[str, tuple[str, Path]]:
    """``["rooms=segmentation:a", "depth:b"]`` as ``{"rooms": ("segmentation", a), "depth": ("depth", b)}``.

    Args:
        given: Values of ``--head``.
        former: Values of ``--task``, such as ``depth=b``.

    Raises:
        ConfigError: A part is missing, a task is not supported, or a name is not unique.
    """
    heads: dict[str, tuple[str, Path]] = {}
    for each in [*given, *map(_convert_former, former)]:
        match = _HEAD.fullmatch(each)
        if match is None:
            raise ConfigError(f"--head {each}: must be [NAME=]TASK:FOLDER, such as depth:my_data.")
        name, task, folder = match[2] if match[1] is None else match[1], match[2], match[3]
        if task not in sharing_tasks():
            raise ConfigError(
                f"--head {each}: '{task}' is not supported for several heads. Use {' or '.join(sharing_tasks())}."
            )
        if name in heads:
            raise ConfigError(f"--head {each}: the name {name} is not unique. Give another name: NAME={task}:FOLDER.")
        heads[name] = (task, Path(folder))
    return heads


def _convert_former(given: str) -> str:
    """Converts ``depth=a`` of the former option ``--task`` to ``depth:a`` of ``--head``."""
    task, equals, folder = given.partition("=")
    if not (task and equals and folder):
        raise ConfigError(f"--task {given}: must be --head TASK:FOLDER, such as --head depth:my_data.")
    return f"{task}:{folder}"
