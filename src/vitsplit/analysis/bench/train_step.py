"""Training steps of several methods side by side in one process: time, memory, multiply-adds, and their ratios.

The methods take turns, after turns that do not count. A ratio is to ViT-Split in the same turn, and stands beside the
paper's (Fig. 8, Table 15) and beside what the multiply-adds alone would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vitsplit.analysis.bench.memory import PeakMemory, measure_memory
from vitsplit.analysis.bench.workload import (
    MAX_CLASSES,
    PARTS,
    Backbones,
    TimedStep,
    Workload,
    method_config,
    open_accelerator,
)
from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import Spread, describe_machine, free_memory, paired_ratio, product_speed
from vitsplit.engine.config import TrainConfig
from vitsplit.engine.override import override
from vitsplit.engine.precision import DTYPES, Resolved, resolve_precision
from vitsplit.errors import ConfigError
from vitsplit.recipes import count_classes
from vitsplit.tasks.base import DecoderKind

REFERENCE = "vitsplit"
Say = Callable[[str], None]


@dataclass(frozen=True)
class PaperRatio:
    """How many times as long as ViT-Split a method trains in the paper.

    Attributes:
        value: The ratio.
        rounded: Whether the paper says "about"; else it follows from its times.
    """

    value: float
    rounded: bool = False

    def __str__(self) -> str:
        return f"about {self.value:g}" if self.rounded else f"{self.value:.2f}"


# (method, what decodes it) -> width -> ratio: Table 15's times on ADE20K at 512 pixels, and the text of Fig. 8.
PAPER: dict[tuple[str, DecoderKind], dict[int, PaperRatio]] = {
    ("full-finetune", "own"): {384: PaperRatio(1.64), 768: PaperRatio(1.43), 1024: PaperRatio(1.35)},
    ("upernet", "upernet"): {384: PaperRatio(3.33), 768: PaperRatio(2.28), 1024: PaperRatio(2.42)},
    ("vit-adapter", "upernet"): {384: PaperRatio(4, rounded=True), 768: PaperRatio(3, rounded=True)},
    ("vit-comer", "upernet"): {384: PaperRatio(4, rounded=True), 768: PaperRatio(3, rounded=True)},
}


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """What is to be measured.

    Attributes:
        config: The recipe, with whatever settings were changed.
        methods: ``NAME``, ``NAME:DECODER`` or ``NAME:cached`` each.
        size: Height and width of the images.
        batch_size: Images per step.
        num_classes: K; None: that of the recipe's data.
        steps: Turns that count.
        warmup: Turns before them that do not.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        memory: Whether peak memory is measured, each method in a new process.
        product: Whether the speed of a plain matrix product is measured too.
    """

    config: TrainConfig[Any]
    methods: tuple[str, ...]
    size: tuple[int, int] = (512, 512)
    batch_size: int = 2
    num_classes: int | None = None
    steps: int = 10
    warmup: int = 2
    device: str = "cpu"
    memory: bool = True
    product: bool = True


@dataclass(kw_only=True)
class MethodFigures:
    """What was measured of a method.

    Attributes:
        method: Its name.
        decoder: What decodes its maps.
        seconds: Of every turn.
        parts: Seconds of every turn, by part.
        gmacs: Multiply-adds of a step, in 10^9.
        trained_parameters: How many numbers train.
        memory: Peak memory, if measured.
        paper: The paper's ratio, if it has one.
    """

    method: str
    decoder: DecoderKind
    gmacs: float
    trained_parameters: int
    paper: PaperRatio | None
    memory: PeakMemory | None = None
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})


@dataclass(frozen=True, kw_only=True)
class TrainStepResult:
    """A whole measurement.

    Attributes:
        recipe: Name of the recipe.
        size: Height and width of the images.
        batch_size: Images per step.
        num_classes: K; 0 for depth.
        precision: What was computed in.
        warmup: Turns that did not count.
        machine: See ``describe_machine``.
        methods: By label, in the order that they were asked for.
        product: Speeds of a matrix product before and after, in 10^9 multiply-adds per second; empty: not measured.
    """

    recipe: str
    size: tuple[int, int]
    batch_size: int
    num_classes: int
    precision: str
    warmup: int
    machine: Mapping[str, Any]
    methods: Mapping[str, MethodFigures]
    product: Sequence[float]

    def time_ratio(self, label: str) -> Spread:
        """How many times as long as ViT-Split's the steps of a method are."""
        return paired_ratio(self.methods[label].seconds, self.methods[REFERENCE].seconds)

    def gmacs_ratio(self, label: str) -> float:
        """The same, if time went by multiply-adds."""
        return self.methods[label].gmacs / self.methods[REFERENCE].gmacs

    def memory_ratio(self, label: str) -> float | None:
        """How many times as much memory as ViT-Split a method needs; None: not measured."""
        own, reference = self.methods[label].memory, self.methods[REFERENCE].memory
        return own.step / reference.step if own is not None and reference is not None else None

    def gmacs_per_second(self, label: str) -> float:
        """Multiply-adds per second of a method's median step, in 10^9."""
        return self.methods[label].gmacs / Spread.of(self.methods[label].seconds).median

    def share_of_product(self, label: str) -> float | None:
        """That as a share of a plain matrix product's; None: not measured."""
        return self.gmacs_per_second(label) / Spread.of(self.product).median if self.product else None


def plan_workloads(plan: BenchPlan) -> list[Workload]:
    """What each method runs, checked.

    Raises:
        ConfigError: A number is out of range, or a method does not exist, comes twice, or cannot be run so.
    """
    for name, least in (("steps", 1), ("warmup", 0), ("batch_size", 1)):
        if getattr(plan, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(plan, name)}.")
    return method_workloads(
        plan.config,
        plan.methods,
        size=plan.size,
        batch_size=plan.batch_size,
        num_classes=plan.num_classes,
        device=plan.device,
    )


def method_workloads(
    config: TrainConfig[Any],
    methods: tuple[str, ...],
    *,
    size: tuple[int, int],
    batch_size: int,
    num_classes: int | None,
    device: str,
) -> list[Workload]:
    """What each method of a comparison runs, checked.

    Args:
        config: The recipe, in the precision that is computed in.
        methods: ``NAME`` or ``NAME:DECODER`` each.
        size: Height and width of the images.
        batch_size: Images at a time.
        num_classes: K; None: that of the recipe's data.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ConfigError: A number is out of range, or a method does not exist, comes twice, or cannot be run so.
    """
    if min(size) < 1:
        raise ConfigError(f"--size {size[0]} {size[1]}: height and width are at least 1.")
    if REFERENCE not in methods:
        raise ConfigError(f"--methods {' '.join(methods)}: add {REFERENCE}, which all others are compared with.")
    doubled = {label for label in methods if methods.count(label) > 1}
    if doubled:
        raise ConfigError(f"--methods: {', '.join(sorted(doubled))} was given more than once. Give each method once.")
    classes = count_classes(config) if num_classes is None else num_classes
    if classes > MAX_CLASSES or (num_classes is not None and num_classes < 1):
        raise ConfigError(f"--num-classes must be from 1 to {MAX_CLASSES}, not {classes}.")
    return [
        Workload(
            label=label,
            config=method_config(config, label),
            size=size,
            batch_size=batch_size,
            num_classes=classes,
            device=device,
        )
        for label in methods
    ]


def measure(plan: BenchPlan, say: Say = lambda text: None) -> TrainStepResult:
    """Measures a plan.

    Args:
        plan: What is to be measured.
        say: Is told what goes on.

    Raises:
        ConfigError: The plan cannot be carried out.
        WeightsError: Pretrained weights were asked for and cannot be had.
        TrainingError: The loss or the gradient of a step is not finite.
    """
    accelerator = open_accelerator(plan.device)
    precision = resolve_precision(plan.config.loop.precision, accelerator.device)
    workloads = plan_workloads(replace(plan, config=override(plan.config, {"precision": precision})))
    machine = describe_machine(accelerator.device)
    backbones, steps, figures = Backbones(), {}, {}
    for workload in workloads:
        say(f"building {workload.label}")
        step = steps[workload.label] = TimedStep(workload, accelerator, backbones)
        cost = step_gmacs(workload.config, plan.size, num_classes=workload.num_classes)
        computed = cost["step"] - (cost["frozen"] if workload.config.loop.cache_features else 0.0)
        figures[workload.label] = MethodFigures(
            method=workload.config.method,
            decoder=workload.decoder,
            gmacs=computed * plan.batch_size,
            trained_parameters=step.trained_parameters,
            paper=PAPER.get((workload.config.method, workload.decoder), {}).get(step.width),
        )
    product = _product(plan, accelerator.device, precision)
    take_turns(steps, figures, turns=plan.steps, warmup=plan.warmup, say=say)
    product += _product(plan, accelerator.device, precision)
    del step, steps, backbones
    free_memory(accelerator.device)
    if plan.memory:
        for workload in workloads:
            say(f"memory of {workload.label}")
            figures[workload.label].memory = measure_memory(workload, torch.get_num_threads())
    return TrainStepResult(
        recipe=plan.config.name,
        size=plan.size,
        batch_size=plan.batch_size,
        num_classes=workloads[0].num_classes,
        precision=precision,
        warmup=plan.warmup,
        machine=machine,
        methods=figures,
        product=product,
    )


def take_turns(
    takers: Mapping[str, Callable[[], tuple[float, dict[str, float]]]],
    figures: Mapping[str, MethodFigures],
    *,
    turns: int,
    warmup: int,
    say: Say,
) -> None:
    """Lets every method take a step in every turn, and notes those after the warm-up.

    Who begins changes from turn to turn, as a step finds the caches as the one before has left them.
    """
    order = list(takers)
    for turn in range(warmup + turns):
        first = turn % len(order)
        for label in order[first:] + order[:first]:
            seconds, parts = takers[label]()
            if turn >= warmup:
                figures[label].seconds.append(seconds)
                for part, value in parts.items():
                    figures[label].parts[part].append(value)
        say(f"turn {turn + 1 - warmup} of {turns}" if turn >= warmup else "warming up")


def _product(plan: BenchPlan, device: torch.device, precision: Resolved) -> list[float]:
    return product_speed(device, DTYPES[precision]) if plan.product else []
