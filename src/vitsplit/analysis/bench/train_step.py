"""Benchmark of training steps of several methods in one process: time, memory, multiply-adds, and their ratios.

The methods are measured in turns after a warm-up. Ratios are to ViT-Split in the same turn, and are compared with the
paper (Fig. 8, Table 15) and with the ratio of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from vitsplit.analysis.bench.comparison import REFERENCE, Comparison, Plan
from vitsplit.analysis.bench.workload import PARTS, Backbones, TimedStep, Workload, open_accelerator
from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import (
    MemoryMeter,
    PeakMemory,
    Say,
    Spread,
    describe_machine,
    free_memory,
    product_speed,
    run_interleaved,
)
from vitsplit.analysis.processes import in_new_process
from vitsplit.precision import DTYPES, Resolved, resolve_precision
from vitsplit.types import TapRequest

MEMORY_STEPS = 2
"""The optimizer state is allocated in the first step, so the second step has the full peak."""


@dataclass(frozen=True)
class PaperRatio:
    """Training time relative to ViT-Split in the paper.

    Attributes:
        value: The ratio.
        rounded: Whether the paper gives an approximate ratio; otherwise it is computed from its times.
    """

    value: float
    rounded: bool = False

    def __str__(self) -> str:
        return f"about {self.value:g}" if self.rounded else f"{self.value:.2f}"


# (method, decoder) -> width -> ratio: Table 15's times on ADE20K at 512 pixels, and the text of Fig. 8.
PAPER: dict[tuple[str, str], dict[int, PaperRatio]] = {
    ("full-finetune", "linear"): {384: PaperRatio(1.64), 768: PaperRatio(1.43), 1024: PaperRatio(1.35)},
    ("upernet", "upernet"): {384: PaperRatio(3.33), 768: PaperRatio(2.28), 1024: PaperRatio(2.42)},
    ("vit-adapter", "upernet"): {384: PaperRatio(4, rounded=True), 768: PaperRatio(3, rounded=True)},
    ("vit-comer", "upernet"): {384: PaperRatio(4, rounded=True), 768: PaperRatio(3, rounded=True)},
}


@dataclass(frozen=True, kw_only=True)
class BenchPlan(Plan):
    """Plan of a measurement of training steps.

    Attributes:
        steps: Number of measured steps.
        memory: Whether to measure peak memory, with a new process per method.
        product: Whether to measure the speed of a matrix product.
    """

    batch_size: int = 2
    steps: int = 10
    memory: bool = True
    product: bool = True


@dataclass(kw_only=True)
class MethodFigures:
    """Measurements of a method.

    Attributes:
        method: Its name.
        decoder: Its decoder.
        seconds: Seconds of each step.
        parts: Part to seconds in each step.
        gmacs: Multiply-adds per step, in 10^9.
        trained_parameters: Number of trainable parameters.
        memory: Peak memory, if measured.
        paper: The ratio in the paper, if any.
    """

    method: str
    decoder: str
    gmacs: float
    trained_parameters: int
    paper: PaperRatio | None
    memory: PeakMemory | None = None
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})


@dataclass(frozen=True, kw_only=True)
class TrainStepResult(Comparison[MethodFigures]):
    """Results of a measurement of training steps.

    Attributes:
        warmup: Number of warm-up steps.
        product: Speeds of a matrix product before and after, in 10^9 multiply-adds per second; empty: not measured.
    """

    warmup: int
    product: Sequence[float]

    def memory_ratio(self, label: str) -> float | None:
        """Peak memory relative to ViT-Split; None: not measured."""
        own, reference = self.methods[label].memory, self.methods[REFERENCE].memory
        return own.step / reference.step if own is not None and reference is not None else None

    def gmacs_per_second(self, label: str) -> float:
        """Multiply-adds per second of the median step of a method, in 10^9."""
        return self.methods[label].gmacs / self.median(label)

    def share_of_product(self, label: str) -> float | None:
        """``gmacs_per_second`` relative to a matrix product; None: not measured."""
        return self.gmacs_per_second(label) / Spread.of(self.product).median if self.product else None


def measure(plan: BenchPlan, say: Say = lambda text: None) -> TrainStepResult:
    """Measures a plan.

    Args:
        plan: The plan.
        say: Called with progress messages.

    Raises:
        ConfigError: The plan is invalid.
        WeightsError: Pretrained weights are unavailable.
        TrainingError: The loss or the gradient of a step is not finite.
    """
    accelerator = open_accelerator(plan.device)
    precision = resolve_precision(plan.config.loop.precision, accelerator.device)
    workloads = plan.workloads(precision)
    machine = describe_machine(accelerator.device)
    backbones, steps, figures = Backbones(), {}, {}
    for workload in workloads:
        say(f"building {workload.label}")
        step = steps[workload.label] = TimedStep(workload, accelerator, backbones)
        cost = step_gmacs(workload.config, plan.size, num_classes=workload.num_classes)
        computed = cost["step"] - (cost["frozen"] if workload.config.loop.cache_features else 0.0)
        figures[workload.label] = MethodFigures(
            method=workload.config.method.name,
            decoder=workload.decoder,
            gmacs=computed * plan.batch_size,
            trained_parameters=step.trained_parameters,
            paper=PAPER.get((workload.config.method.name, workload.decoder), {}).get(step.width),
        )
    product = _product(plan, accelerator.device, precision)
    for label, taken in run_interleaved(steps, turns=plan.steps, warmup=plan.warmup, say=say).items():
        figures[label].seconds = [seconds for seconds, _ in taken]
        figures[label].parts = {part: [parts[part] for _, parts in taken] for part in PARTS}
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


def _product(plan: BenchPlan, device: torch.device, precision: Resolved) -> list[float]:
    return product_speed(device, DTYPES[precision]) if plan.product else []


def measure_memory(workload: Workload, threads: int) -> PeakMemory:
    """The peak memory of a training step of a method, measured in a new process.

    Includes the model, gradients, optimizer state and activations. The frozen backbone is released if the method has
    its own.

    Raises:
        VitsplitError: The configuration is not supported.
        NotFiniteError: The loss is not finite.
    """
    return in_new_process(_memory_here, workload, threads)


def _memory_here(workload: Workload, threads: int) -> PeakMemory:
    torch.set_num_threads(threads)
    accelerator = open_accelerator(workload.device)
    meter, backbones = MemoryMeter(accelerator.device), Backbones()
    step = TimedStep(workload, accelerator, backbones)
    if step.model.request(train=True) == TapRequest(pixels=True):
        backbones.drop_weights()
    for _ in range(MEMORY_STEPS):
        step()
    return meter.read()
