"""The subject of ``vitsplit info``: a recipe or a bundle, with its layers, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.files import is_address
from vitsplit.recipes import RECIPES, count_classes, recipe
from vitsplit.train_config import TrainConfig


@dataclass(frozen=True)
class Subject:
    """A recipe or a bundle.

    Attributes:
        title: Name.
        config: Configuration.
        num_classes: Number of classes of the data set; 0 for tasks without classes.
        description: The bundle's description of its task; None for a recipe.
        used_layers: Layers selected by a trained gate; None without one.
        notes: Further rows of the table by label.
    """

    title: str
    config: TrainConfig
    num_classes: int
    description: Mapping[str, Any] | None
    used_layers: tuple[int, ...] | None
    notes: Mapping[str, str]


def with_classes(subject: Subject, num_classes: int) -> Subject:
    """The subject with another number of classes.

    Raises:
        ConfigError: The task has no classes.
    """
    if subject.num_classes == 0:
        raise ConfigError(f"{subject.title} has no classes: omit --num-classes.")
    return replace(subject, num_classes=num_classes, description=None)


def configuration(target: str) -> TrainConfig:
    """The configuration of a recipe or bundle.

    Raises:
        ConfigError: There is no such recipe or folder.
        BundleError: The folder does not contain a valid bundle.
    """
    if target in RECIPES or not (is_address(target) or Path(target).exists()):
        try:
            return recipe(target)
        except ConfigError as error:
            raise ConfigError(f"{error} There is no run or bundle folder '{target}' either.") from None
    from vitsplit.bundle import read_card

    return read_card(target).config


def find_subject(target: str, config: TrainConfig | None = None) -> Subject:
    """The recipe or bundle of a name, with its own or the given configuration.

    Raises:
        ConfigError: There is no such recipe or folder.
        BundleError: The folder does not contain a valid bundle.
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
        "license": f"{card.backbone['licence']} (backbone)",
        "weights": card.backbone["weights_hash"],
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in figures.items()),
    }
    if card.config.task.calibrated:
        temperature = card.description.get("temperature")
        notes["confidence"] = (
            "not calibrated (temperature 1)"
            if temperature is None
            else f"calibrated with temperature {temperature:.4g}"
        )
    num_classes = len(card.description.get("classes", ()))
    used_layers = card.prior_layers if is_gated else None
    return Subject(target, config, num_classes, card.description, used_layers, notes)


def describe(subject: Subject, size: tuple[int, ...]) -> dict[str, Any]:
    """JSON-compatible figures: backbone, layers, ``parameters`` by component, and ``gmacs`` of an image of ``size``."""
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
