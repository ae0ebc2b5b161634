"""Variants of a configuration, and those studied in the paper (Fig. 11, Tables 6 to 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import split_settings
from vitsplit.methods.split.layers import select_layers, split_depth
from vitsplit.train_config import TrainConfig

Selection = Literal["uniform", "last", "gate", "least-alike"]
SELECTIONS: tuple[Selection, ...] = ("uniform", "last", "gate", "least-alike")

LeastAlike = Callable[[int], tuple[int, ...]]
"""Maps K_p to the K_p least similar layers on the data."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the compared variants.

    Attributes:
        name: Its name, also the prefix of its run folders: letters, digits, ``-``, ``_`` and ``.``.
        settings: Changes to the configuration of the study, by setting name.
        title: Display name; empty: the name.
        layers: ``recipe``, or ``auto``: chosen at the start of each run, see ``vitsplit.train``.
        max_minutes: With ``auto``: the time of a run, which sets its steps; None: the steps are those of the settings.
    """

    name: str
    settings: Mapping[str, Any]
    title: str = ""
    layers: Literal["recipe", "auto"] = "recipe"
    max_minutes: float | None = None

    @property
    def label(self) -> str:
        """The display name."""
        return self.title or self.name


def selection_settings(selection: Selection, num_prior_layers: int, least_alike: LeastAlike) -> dict[str, Any]:
    """The settings of a prior head with K_p layers and a selection."""
    if selection == "least-alike":
        layers = least_alike(num_prior_layers)
        return {"selection": "explicit", "prior_layers": layers, "num_prior_layers": num_prior_layers}
    return {"selection": selection, "prior_layers": (), "num_prior_layers": num_prior_layers}


def sweep_variants(
    tuned: Sequence[int], prior: Sequence[int], selections: Sequence[Selection], least_alike: LeastAlike
) -> list[Variant]:
    """All combinations of K_t, K_p and selection."""
    return [
        Variant(
            name=f"kt{num_tuned}-kp{num_prior}-{selection}",
            title=f"K_t = {num_tuned}, K_p = {num_prior}, {selection}",
            settings={
                "num_tuned_layers": num_tuned,
                **selection_settings(selection, num_prior, least_alike),
            },
        )
        for selection in selections
        for num_prior in prior
        for num_tuned in tuned
    ]


def part_variants() -> list[Variant]:
    """The rows of Table 6 in order, except full fine-tuning, which is a separate method."""
    off: dict[str, Any] = {"task_head": False, "prior_head": False, "fusion": False}
    return [
        Variant(name="frozen", title="frozen last layer", settings=off),
        Variant(name="prior", title="prior head", settings={**off, "prior_head": True}),
        Variant(name="task", title="task head", settings={**off, "task_head": True}),
        Variant(name="added", title="prior + task, added", settings={"fusion": False}),
        Variant(name="full", title="prior + task + fusion", settings={}),
    ]


def selection_variants(
    num_prior_layers: int, selections: Sequence[Selection], least_alike: LeastAlike
) -> list[Variant]:
    """Selections of the K_p layers (Tables 7 and 8)."""
    return [
        Variant(
            name=f"layers-{selection}",
            title=f"{selection} layers",
            settings=selection_settings(selection, num_prior_layers, least_alike),
        )
        for selection in selections
    ]


def count_variants(prior: Sequence[int]) -> list[Variant]:
    """Values of K_p, with the selection of the configuration."""
    return [Variant(name=f"kp{each}", title=f"K_p = {each}", settings={"num_prior_layers": each}) for each in prior]


def check_variants(base: TrainConfig, variants: Sequence[Variant], num_layers: int) -> None:
    """Checks variants against the number of layers of the backbone before training.

    Raises:
        ConfigError: A variant needs more layers, or there are no variants.
    """
    if not variants:
        raise ConfigError("There is nothing to compare: give at least one value to vary.")
    for variant in variants:
        method = override(base, variant.settings).method
        if not method.has_layers:
            continue
        split = split_settings(method, variant.label)
        try:
            select_layers(split, num_layers)
            if split.task_head:
                split_depth(split, num_layers)
        except ConfigError as error:
            raise ConfigError(f"{variant.label}: {error}") from error
