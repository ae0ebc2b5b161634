"""``vitsplit info``: parameters, layers and multiply-adds of a recipe or a bundle, without weights."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli
from vitsplit.cli.values import MAX_CLASSES, side, whole
from vitsplit.engine.config import TrainConfig
from vitsplit.errors import ConfigError
from vitsplit.recipes import RECIPES, count_classes, recipe

DESCRIPTION = """\
Says what a recipe or a trained bundle consists of and what it costs: the layers that are read, parameters by part,
and multiply-adds of one prediction. Shapes are enough for that: neither weights nor data are read.

Multiply-adds are those of all convolutions and products of matrices; the paper's figure, made with the counter of
mmcv, leaves out attention and the product of the deformable convolutions, and is given beside it.

A detector is counted at its full load, 1000 proposals and as many detections as it may give; an image with fewer
objects costs less. Of visual question answering the connector is counted, and nothing of the language model.

Every setting is a flag here too, to see what it would change:

  vitsplit info ade20k-small
  vitsplit info ade20k-base --size 896 896 --json
  vitsplit info ade20k-small --no-task-head --num-prior-layers 6
  vitsplit info laptop-segmentation --method linear-probe --num-classes 39
  vitsplit info ade20k-small --method vit-adapter --decoder linear
  vitsplit info coco-small --size 800 1216 --task-head-window 16
  vitsplit info llava15-7b-align --connector mlp2x
  vitsplit info runs/first

Several recipes or runs are compared on one backbone with as many separate models:

  vitsplit info runs/first runs/depth
"""


@dataclass(frozen=True)
class Subject:
    """What is to be described.

    Attributes:
        title: Its name.
        config: Its configuration.
        num_classes: Classes of its data; 0 for a task without.
        description: What the bundle says of its task; None for a recipe.
        used_layers: Layers that a trained gate keeps, if it has one.
        notes: Further rows of the table, by their label.
    """

    title: str
    config: TrainConfig
    num_classes: int
    description: Mapping[str, Any] | None
    used_layers: tuple[int, ...] | None
    notes: Mapping[str, str]


def main(argv: list[str]) -> int:
    """Runs the verb."""
    if len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-"):
        from vitsplit.cli import info_shared

        return info_shared.main(argv)
    parser = _parser()
    options, rest = parser.parse_known_args(argv)
    if options.target is None:
        parser.print_help()
        return 0 if options.help else 2
    if options.help:
        parser.print_help()
        print(f"\nsettings of {options.target}:\n")
    subject = find_subject(options.target, rest + ["--help"] * options.help)
    if options.num_classes is not None:
        subject = with_classes(subject, options.num_classes)
    size = tuple(options.size or subject.config.task.crop_size)
    facts = describe(subject, size)
    if options.json:
        print(json.dumps(facts))
    else:
        _print_table(subject, facts, size)
    return 0


def with_classes(subject: Subject, num_classes: int) -> Subject:
    """The same, for data with another number of classes.

    Raises:
        ConfigError: The task has no classes.
    """
    if subject.num_classes == 0:
        raise ConfigError(f"{subject.title} has no classes: leave --num-classes away.")
    return replace(subject, num_classes=num_classes, description=None)


def find_subject(target: str, flags: list[str]) -> Subject:
    """The recipe or the bundle of that name, with settings changed by flags.

    Raises:
        ConfigError: It is neither, or a flag is wrong.
        BundleError: The folder holds no readable bundle.
    """
    prog = f"vitsplit info {target}"
    if target in RECIPES:
        config = config_from_cli(recipe(target), flags, prog=prog)
        summary = (RECIPES[target].__doc__ or "").partition("\n")[0]
        return Subject(target, config, count_classes(config), None, None, {"recipe": summary})
    if not Path(target).exists():
        try:
            recipe(target)
        except ConfigError as error:
            raise ConfigError(f"{error} Nor is there a run or bundle folder '{target}'.") from None
    from vitsplit.bundle import read_card

    card = read_card(target)
    config = config_from_cli(card.config, flags, prog=prog)
    is_gated = config.method == card.config.method and config.method != config.method.without_gate(None)
    figures = {name: value for name, value in card.metrics.items() if isinstance(value, int | float)}
    notes = {
        "recipe": card.config.name,
        "licence": f"{card.backbone['licence']} (backbone)",
        "weights": card.backbone["weights_hash"],
        "reached": ", ".join(f"{name} {value:.4g}" for name, value in figures.items()),
    }
    num_classes = len(card.description.get("classes", ()))
    used_layers = card.prior_layers if is_gated else None
    return Subject(target, config, num_classes, card.description, used_layers, notes)


def describe(subject: Subject, size: tuple[int, ...]) -> dict[str, Any]:
    """The facts, JSON-ready: backbone, layers, ``parameters`` by part, and ``gmacs`` for an image of ``size``."""
    from vitsplit.analysis.cost import count_parameters, gmacs, shape_model

    config = subject.config
    backbone, model = shape_model(config, subject.num_classes, subject.description)
    copied, layers = model.head.describe_layers() if hasattr(model.head, "describe_layers") else (0, ())
    height, width = size
    return {
        "backbone": backbone.name,
        "num_tuned_layers": copied,
        "prior_layers": list(subject.used_layers or layers),
        "parameters": count_parameters(model, backbone),
        "gmacs": gmacs(
            config,
            (height, width),
            num_classes=subject.num_classes,
            description=subject.description,
            used_layers=subject.used_layers,
        ),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitsplit info",
        usage="vitsplit info RECIPE|RUN [RECIPE|RUN ...] [--json] [--size H W] [--num-classes K] [--SETTING VALUE ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("target", nargs="?", metavar="RECIPE|RUN", help="`vitsplit recipes` lists the recipes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--size", type=side, nargs=2, metavar=("H", "W"), help="image to count for (default: the recipe's crop)"
    )
    parser.add_argument(
        "--num-classes", type=whole(1, MAX_CLASSES), metavar="K", help="classes to count for (default: the data set's)"
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text; after a RECIPE, its settings as well")
    return parser


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
        is_open = method != method.without_gate(None) and subject.used_layers is None
        table.add_row("prior layers", f"{layers} (the gate keeps some of them)" * is_open or layers)
        parts: tuple[str, ...] = ("task_head", "prior_head", "fusion", "decoder", "connector", "trainable")
    else:
        table.add_row("method", method.title)
        parts = ("tuned", "added", "decoder", "trainable")
    for part in parts:
        if part not in parameters:
            continue
        note = f"   for {subject.num_classes} classes" if part == "decoder" and subject.num_classes else ""
        table.add_row(part.replace("_", " "), f"{parameters[part] / 1e6:8.2f} M{note}")
    table.add_row("one prediction", f"{cost['total']:8.1f} G multiply-adds at {size[0]} x {size[1]}")
    table.add_row("", f"{cost['mmcv_rules']:8.1f} G by the paper's counting rules")
    Console().print(table)
