"""Base of comparisons of methods: plan, results, and ratios to ViT-Split."""

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
"""The reference method."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a measurement.

    Attributes:
        config: The recipe with changed settings.
        methods: ``NAME``, ``NAME:DECODER`` or ``NAME:cached`` each.
        own: Method name to settings that the method of the recipe does not have.
        size: Height and width of the images.
        batch_size: Batch size.
        num_classes: K; None: that of the recipe's data.
        warmup: Number of warm-up turns.
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
        """Checks the plan and returns the workload of each method, in a precision other than ``auto``.

        Raises:
            ConfigError: A number is out of range, or a method is unknown, duplicate or not supported.
        """
        for name, least in (("steps", 1), ("turns", 1), ("warmup", 0), ("batch_size", 1)):
            value = getattr(self, name, least)
            if value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
        if min(self.size) < 1:
            raise ConfigError(f"--size {self.size[0]} {self.size[1]}: height and width must be at least 1.")
        if REFERENCE not in self.methods:
            given = " ".join(self.methods)
            raise ConfigError(f"--methods {given}: add {REFERENCE}, the reference of the comparison.")
        duplicates = {label for label in self.methods if self.methods.count(label) > 1}
        if duplicates:
            raise ConfigError(f"--methods: {', '.join(sorted(duplicates))} was given more than once.")
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
    """Measurements of a method."""

    @property
    def seconds(self) -> list[float]:
        """Seconds of each turn."""

    @property
    def gmacs(self) -> float:
        """Multiply-adds, in 10^9."""


MethodT = TypeVar("MethodT", bound=Timed)


@dataclass(frozen=True, kw_only=True)
class Comparison(Generic[MethodT]):
    """Results of a measurement.

    Attributes:
        recipe: Name of the recipe.
        size: Height and width of the images.
        batch_size: Batch size.
        num_classes: K; 0 for depth.
        precision: Precision of the computation.
        machine: See ``describe_machine``.
        methods: Label to measurements, in the given order.
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
        """Ratio of the time of a method to that of ViT-Split, turn by turn."""
        return paired_ratio(self.methods[label].seconds, self.methods[REFERENCE].seconds)

    def gmacs_ratio(self, label: str) -> float:
        """Ratio of the multiply-adds of a method to those of ViT-Split."""
        return self.methods[label].gmacs / self.methods[REFERENCE].gmacs

    def setting(self) -> dict[str, Any]:
        """The configuration of the measurement, JSON-ready."""
        names = ("recipe", "batch_size", "num_classes", "precision")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "size": list(self.size), "machine": dict(self.machine)}
