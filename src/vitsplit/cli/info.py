"""``vitsplit info``: parameters, layers and multiply-adds of a recipe or a bundle, without weights."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from vitsplit.cli.flags import FromWords
from vitsplit.cli.values import ImageSize, NumClasses, Switch
from vitsplit.cli.words import leading_words
from vitsplit.engine.config import TrainConfig
from vitsplit.errors import ConfigError
from vitsplit.recipes import RECIPES, count_classes, recipe

MISSING = "Missing required RECIPE or RUN: `vitsplit recipes` lists the recipes."


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


def _base(argv: Sequence[str]) -> TrainConfig | None:
    """The settings of the only target; None where there is none, or several."""
    targets = leading_words(argv)
    return _configuration(targets[0]) if len(targets) == 1 else None


def info(
    targets: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RECIPE|RUN ...")]] = (),
    /,
    json: Switch = False,
    size: ImageSize | None = None,
    num_classes: NumClasses | None = None,
    config: Annotated[TrainConfig | None, FromWords(_base)] = None,
) -> int:
    """Say what a recipe or a trained bundle consists of and what it costs.

    Prints the layers that are read, parameters by part, and multiply-adds of one prediction. Shapes are enough for
    that: neither weights nor data are read.

    Multiply-adds are those of all convolutions and matrix products; the paper's figure, made with the counter of mmcv,
    omits attention and the product of the deformable convolutions, and is given beside it. A detector is counted at its
    full load, 1000 proposals and as many detections as it may give; an image with fewer objects costs less. Of visual
    question answering the connector is counted, and nothing of the language model.

    Every setting of a single target is a flag here too, to see what it would change. Several recipes or runs are
    compared on one backbone with as many separate models: the backbone is in memory once and runs once per image and
    input size. Each bundle resizes, mirrors and cuts the image as it does in prediction; views that bundles have in
    common are one pass.

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
        size: Height and width of the image; the only target's crop, or 480 640 for several.
        num_classes: Classes to count for, of a single target; those of the data set.
        config: Settings of the single target.
    """
    if not targets:
        raise ConfigError(MISSING)
    if config is None:
        from vitsplit.cli.info_shared import show_shared

        if num_classes is not None:
            raise ConfigError("--num-classes goes with a single recipe or run. Omit it.")
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


def with_classes(subject: Subject, num_classes: int) -> Subject:
    """The same, for data with another number of classes.

    Raises:
        ConfigError: The task has no classes.
    """
    if subject.num_classes == 0:
        raise ConfigError(f"{subject.title} has no classes: omit --num-classes.")
    return replace(subject, num_classes=num_classes, description=None)


def _configuration(target: str) -> TrainConfig:
    """The settings of the recipe or bundle of that name.

    Raises:
        ConfigError: It is neither.
        BundleError: The folder holds no readable bundle.
    """
    if target in RECIPES or not Path(target).exists():
        try:
            return recipe(target)
        except ConfigError as error:
            raise ConfigError(f"{error} Nor is there a run or bundle folder '{target}'.") from None
    from vitsplit.bundle import read_card

    return read_card(target).config


def find_subject(target: str, config: TrainConfig | None = None) -> Subject:
    """The recipe or the bundle of that name, with its own settings or with changed ones.

    Raises:
        ConfigError: It is neither.
        BundleError: The folder holds no readable bundle.
    """
    if config is None:
        config = _configuration(target)
    if target in RECIPES:
        summary = (RECIPES[target].__doc__ or "").partition("\n")[0]
        return Subject(target, config, count_classes(config), None, None, {"recipe": summary})
    from vitsplit.bundle import read_card

    card = read_card(target)
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
