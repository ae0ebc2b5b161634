"""What ``vitsplit info`` describes: a recipe or a bundle, with its parameters, layers and multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.recipes import RECIPES, count_classes, recipe
from vitsplit.train_config import TrainConfig


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


def with_classes(subject: Subject, num_classes: int) -> Subject:
    """The same, for data with another number of classes.

    Raises:
        ConfigError: The task has no classes.
    """
    if subject.num_classes == 0:
        raise ConfigError(f"{subject.title} has no classes: omit --num-classes.")
    return replace(subject, num_classes=num_classes, description=None)


def configuration(target: str) -> TrainConfig:
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
        config = configuration(target)
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
