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

from vitsplit.cli.flags import FromWords
from vitsplit.cli.values import Switch
from vitsplit.cli.vqa_stages import NAMES, TASK, stage_config
from vitsplit.cli.words import leading_words, value_of, values_of
from vitsplit.errors import ConfigError
from vitsplit.heads import sharing_tasks
from vitsplit.recipes.starting_point import starting_config, starting_heads
from vitsplit.tasks import TASKS
from vitsplit.train_config import TrainConfig

HEADS = "multi"
"""What stood in place of a task's name, with ``--task TASK=FOLDER``, before there was ``--head``."""
_HEAD = re.compile(r"(?:([^=:]*)=)?([^=:]+):(.+)", re.DOTALL)


def _starting_points(argv: Sequence[str]) -> tuple[TrainConfig, ...]:
    """The settings that flags change: of a run, or of both stages of a run; none where no task is named."""
    task = next(iter(leading_words(argv)), "")
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
    learn: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]] = "",
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
    stage: Literal["align", "instruct", "both"] | None = None,
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    task: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    configs: Annotated[tuple[TrainConfig, ...], FromWords(_starting_points)] = (),
) -> int:
    """Train a head bundle for one task on a frozen backbone, or several heads on the same images.

    The data are a folder of images and labels; `vitsplit data check FOLDER` says whether it can be used. Without a
    recipe the task's own for a laptop is taken. Every setting of the recipe can be changed by a flag: vitsplit train
    TASK --help lists them.

    Several heads are trained together with one pass of the backbone for all of them. A setting is then that of all
    heads (--lr 1e-4), or with a head's name before it that of one (--depth.lr 3e-4). A head without a name has its
    task's. Every head becomes a bundle of its own: RUN/best/rooms, RUN/best/depth. Images are the same if their files
    have the same name, and place, in the heads' data sets.

    Visual question answering is trained in one stage or in two.

    The exit status is 128 + the signal's number if a signal stopped the run.

    Examples:
        vitsplit train segmentation --data my_data
        vitsplit train segmentation --data ADEChallengeData2016 --recipe ade20k-small --out runs/ade --batch-size 8
        vitsplit train segmentation --data my_data --out runs/first --resume
        vitsplit train --head rooms=segmentation:my_rooms --head parts=segmentation:my_parts --head depth:my_depth
        vitsplit train vqa --data my_questions
        vitsplit train vqa --data my_questions --stage both --out runs/ask
        vitsplit train vqa --data my_questions --stage instruct --from runs/ask/align --out runs/again

    Args:
        learn: segmentation, depth, detection or vqa; omit it with --head.
        data: The data set.
        head: [NAME=]TASK:FOLDER, once for every head that is trained together with others: its task and its data set.
        out: The run folder; None: a new one under runs/.
        recipe: Settings to start from: `vitsplit recipes` lists them.
        config: Settings to start from: a config.json of another run.
        resume: Resume the run in --out, exactly where it stopped.
        allow_changed_data: Resume although files of the data have changed (names, sizes, times); what has is told.
        layers: K_t and prior layers: the recipe's, or (auto) chosen from up to 64 training images before the run, as
            `vitsplit analyze layers` does; the choice is told and stands in config.json.
        stage: Of vqa: train the connector alone (align), the language model with it (instruct), or one after the other
            (both), each with its own recipe's settings; runs are then OUT/align and OUT/instruct.
        start: Of vqa: the run whose connector to start with.
        task: Former name of --head.
        configs: Settings of the run.
    """
    heads = named_heads(head, task)
    for each in task:
        print(f"warning: --task {each} is --head {_of_former(each)} now", file=sys.stderr)
    if learn != TASK and (stage or start):
        flag = "--stage" if stage else "--from"
        raise ConfigError(f"{flag} goes with `vitsplit train {TASK}`; other tasks are trained in one stage.")
    if not configs and learn:
        raise ConfigError(f"Name the task before the flags: vitsplit train {learn} --data ...")
    if not configs:
        raise ConfigError(f"Missing required TASK ({', '.join(TASKS.names())}), or --head [NAME=]TASK:FOLDER.")
    if heads:
        if learn not in ("", HEADS):
            raise ConfigError(f"{learn} and --head {', '.join(heads)}: name heads without a TASK before them.")
        if data or recipe:
            given = f"--data {data}" if data else f"--recipe {recipe}"
            raise ConfigError(
                f"{given}: every head has its own data and starts from its task's recipe for a laptop. Give --head "
                "[NAME=]TASK:FOLDER for each, and change settings by flags, or give --config of another such run."
            )
    elif learn == HEADS:
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
        if layers == "auto":
            raise ConfigError(
                "--layers auto chooses for one run, and both stages must have the same layers: let `vitsplit analyze "
                "layers` choose, and give the flags that it prints."
            )
        result = api.train_stages(*configs, **options)
    else:
        result = api.train(configs[0], layers=layers, **options)
    return _end(learn, result, configs[-1])


def _end(task: str, result: Any, config: TrainConfig) -> int:
    """Says how to use what was trained; returns the exit status."""
    if result.stopped_by is not None:
        return 128 + int(getattr(signal, result.stopped_by))
    use = '--ask "What is this?"' if task == TASK else "--out predictions"
    # What a bundle's card names is not opened: the user gives it again.
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
        ConfigError: A part is missing, a task cannot share a crop, or a name comes twice.
    """
    heads: dict[str, tuple[str, Path]] = {}
    for each in [*given, *map(_of_former, former)]:
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


def _of_former(given: str) -> str:
    """``depth=a`` of the option ``--task`` as ``depth:a`` of ``--head``."""
    task, equals, folder = given.partition("=")
    if not (task and equals and folder):
        raise ConfigError(f"--task {given}: give a task and its data as --head TASK:FOLDER, such as depth:my_data.")
    return f"{task}:{folder}"
