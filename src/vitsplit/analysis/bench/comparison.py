"""What the comparisons of methods have in common: what is measured, its results, and their ratios to ViT-Split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from vitsplit.analysis.bench.workload import MAX_CLASSES, Workload, method_config
from vitsplit.analysis.measure import Spread, paired_ratio
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.recipes import count_classes
from vitsplit.train_config import TrainConfig

REFERENCE = "vitsplit"
"""The method that all others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured.

    Attributes:
        config: The recipe, with whatever settings were changed.
        methods: ``NAME``, ``NAME:DECODER`` or ``NAME:cached`` each.
        own: Settings that only other methods than the recipe's have, by the method's name.
        size: Height and width of the images.
        batch_size: Images at a time.
        num_classes: K; None: that of the recipe's data.
        warmup: Turns before those that count.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    config: TrainConfig
    methods: tuple[str, ...]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    size: tuple[int, int] = (512, 512)
    batch_size: int
    num_classes: int | None = None
    warmup: int = 2
    device: str = "cpu"

    def workloads(self, precision: str) -> list[Workload]:
        """What each method runs in a precision (not ``auto``), checked.

        Raises:
            ConfigError: A number is out of range, or a method does not exist, comes twice, or cannot be run so.
        """
        for name, least in (("steps", 1), ("turns", 1), ("warmup", 0), ("batch_size", 1)):
            value = getattr(self, name, least)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
        if min(self.size) < 1:
            raise ConfigError(f"--size {self.size[0]} {self.size[1]}: height and width are at least 1.")
        if REFERENCE not in self.methods:
            given = " ".join(self.methods)
            raise ConfigError(f"--methods {given}: add {REFERENCE}, which all others are compared with.")
        doubled = {label for label in self.methods if self.methods.count(label) > 1}
        if doubled:
            raise ConfigError(f"--methods: {', '.join(sorted(doubled))} was given more than once.")
        classes = count_classes(self.config) if self.num_classes is None else self.num_classes
        if classes > MAX_CLASSES or (self.num_classes is not None and classes < 1):
            raise ConfigError(f"--num-classes must be from 1 to {MAX_CLASSES}, not {classes}.")
        base = override(self.config, {"precision": precision})
        return [
            Workload(
                label=label,
                config=method_config(base, label, self.own),
                size=self.size,
                batch_size=self.batch_size,
                num_classes=classes,
                device=self.device,
            )
            for label in self.methods
        ]


class Timed(Protocol):
    """What is measured of a method."""

    @property
    def seconds(self) -> list[float]:
        """Of every turn."""

    @property
    def gmacs(self) -> float:
        """Multiply-adds, in 10^9."""


MethodT = TypeVar("MethodT", bound=Timed)


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[MethodT]):
    """A whole measurement.

    Attributes:
        recipe: Name of the recipe.
        size: Height and width of the images.
        batch_size: Images at a time.
        num_classes: K; 0 for depth.
        precision: What was computed in.
        machine: See ``describe_machine``.
        methods: By label, in the order that they were asked for.
    """

    recipe: str
    size: tuple[int, int]
    batch_size: int
    num_classes: int
    precision: str
    machine: Mapping[str, Any]
    methods: Mapping[str, MethodT]

    def median(self, label: str) -> float:
        """Median seconds of a method."""
        return Spread.of(self.methods[label].seconds).median

    def time_ratio(self, label: str) -> Spread:
        """How many times as long as ViT-Split a method takes, turn by turn."""
        return paired_ratio(self.methods[label].seconds, self.methods[REFERENCE].seconds)

    def gmacs_ratio(self, label: str) -> float:
        """The same, if time went by multiply-adds."""
        return self.methods[label].gmacs / self.methods[REFERENCE].gmacs

    def setting(self) -> dict[str, Any]:
        """What was measured on what, JSON-ready."""
        names = ("recipe", "batch_size", "num_classes", "precision")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "size": list(self.size), "machine": dict(self.machine)}
