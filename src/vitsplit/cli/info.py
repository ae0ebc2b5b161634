"""``vitsplit info``: layers, parameters and multiply-adds of a recipe or bundle."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from vitsplit.cli.flags import FromArgv
from vitsplit.cli.info_shared import show_shared
from vitsplit.cli.info_subject import Subject, configuration, describe, find_subject, with_classes
from vitsplit.cli.values import ImageSize, NumClasses, Switch
from vitsplit.cli.words import leading_arguments
from vitsplit.errors import ConfigError
from vitsplit.train_config import TrainConfig

MISSING = "Missing required RECIPE or RUN: `vitsplit recipes` lists the recipes."


def _base(argv: Sequence[str]) -> TrainConfig | None:
    """The configuration of the target; None without a target or with several."""
    targets = leading_arguments(argv)
    return configuration(targets[0]) if len(targets) == 1 else None


def info(
    targets: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RECIPE|RUN ...")]] = (),
    /,
    json: Switch = False,
    size: ImageSize | None = None,
    num_classes: NumClasses | None = None,
    config: Annotated[TrainConfig | None, FromArgv(_base)] = None,
) -> int:
    """Show layers, parameters and multiply-adds of a recipe or bundle.

    Prints the prior layers, parameters by component, and multiply-adds of one prediction. Neither weights nor data are
    read.

    Multiply-adds are those of all convolutions and matrix products. The count by the paper's rules (mmcv's counter),
    which omits attention and the product of deformable convolutions, is given too. Detectors are counted with 1000
    proposals and the maximum number of detections; images with fewer objects cost less. For visual question answering
    only the connector is counted, not the language model.

    Every setting of a single target is a flag. Several recipes or runs are compared, on one backbone, with as many
    separate models: the backbone is in memory once and runs once per image and input size. Each bundle resizes, flips
    and crops the image as in prediction; equal inputs of several bundles share a pass.

    Examples:
        vitsplit info ade20k-small
        vitsplit info ade20k-base --size 896 896 --json
        vitsplit info ade20k-small --no-task-head --num-prior-layers 6
        vitsplit info laptop-segmentation --method linear-probe --num-classes 39
        vitsplit info ade20k-small --method vit-adapter --decoder linear
        vitsplit info coco-small --size 800 1216 --task-head-window 16
        vitsplit info llava15-7b-align --connector mlp2x
        vitsplit info runs/first
        vitsplit info runs/first runs/depth --size 720 1280

    Args:
        targets: Recipes (`vitsplit recipes` lists them), or folders of runs or bundles.
        json: Print JSON instead of a table.
        size: Height and width of the image; None: the target's crop, or 480 640 for several targets.
        num_classes: Number of classes of a single target; None: that of its data set.
        config: Configuration of a single target.
    """
    if not targets:
        raise ConfigError(MISSING)
    if len(targets) > 1:
        if num_classes is not None:
            raise ConfigError("--num-classes requires a single recipe or run. Omit it.")
        return show_shared(targets, size or (480, 640), as_json=json)
    subject = find_subject(targets[0], config)
    if num_classes is not None:
        subject = with_classes(subject, num_classes)
    shape = size or tuple(subject.config.task.crop_size)
    facts = describe(subject, shape)
    if json:
        print(json_format.dumps(facts))
    else:
        _print_table(subject, facts, shape)
    return 0


def _print_table(subject: Subject, facts: Mapping[str, Any], size: tuple[int, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    parameters, cost = facts["parameters"], facts["gmacs"]
    table = Table(title=subject.title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in subject.notes.items():
        table.add_row(label, text)
    method = subject.config.method
    table.add_row("backbone", f"{facts['backbone']}, {parameters['frozen'] / 1e6:.2f} M frozen")
    if method.has_layers:
        table.add_row("task head", f"last {facts['num_tuned_layers']} blocks" if facts["num_tuned_layers"] else "none")
        layers = " ".join(map(str, facts["prior_layers"])) or "none"
        has_open_gate = method != method.without_gate(None) and subject.used_layers is None
        table.add_row("prior layers", f"{layers} (the gate selects some of them)" * has_open_gate or layers)
        parts: tuple[str, ...] = ("task_head", "prior_head", "fusion", "decoder", "connector", "trainable")
    else:
        table.add_row("method", method.title)
        parts = ("task_head",) * (parameters["task_head"] > 0) + ("tuned", "added", "decoder", "trainable")
    for part in parts:
        if part not in parameters:
            continue
        note = f"   for {subject.num_classes} classes" if part == "decoder" and subject.num_classes else ""
        table.add_row(part.replace("_", " "), f"{parameters[part] / 1e6:8.2f} M{note}")
    table.add_row("one prediction", f"{cost['total']:8.1f} G multiply-adds at {size[0]} x {size[1]}")
    table.add_row("", f"{cost['head']:8.1f} G of these for one more head on a shared pass")
    table.add_row("", f"{cost['mmcv_rules']:8.1f} G by the paper's counting rules")
    Console().print(table)
