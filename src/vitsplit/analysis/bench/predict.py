"""Benchmark of predictions: of several methods, and of bundles on a shared backbone against separate models.

All are measured in turns. Timed is a pass from pixels on the device to the output of the decoder; reading, resizing and
writing cost the same for all methods.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vitsplit.analysis.bench.comparison import REFERENCE, Comparison, Plan
from vitsplit.analysis.bench.workload import Backbones, Workload, random_batch
from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import Say, Spread, Stopwatch, describe_machine, paired_ratio, run_interleaved
from vitsplit.backbone import Backbone
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.inference.loading import choose_device
from vitsplit.model import Head, build_head
from vitsplit.precision import DTYPES, autocast, resolve_precision
from vitsplit.tasks import bare_task

Pass = Callable[[], object]
PAPER = {
    "full-finetune": "about 0.7",
    "upernet": "-",
    "vit-adapter": "2 to 6",
    "vit-comer": "2 to 6",
}
"""Prediction time relative to ViT-Split in the paper (Appendix C, segmentation)."""


@dataclass(frozen=True, kw_only=True)
class PredictPlan(Plan):
    """Plan of a measurement of throughput (of a batch) and latency (of one image).

    Attributes:
        bundles: Numbers of ViT-Split bundles that share a backbone.
        turns: Number of measured turns.
    """

    bundles: tuple[int, ...] = (1, 2, 3, 4)
    batch_size: int = 4
    turns: int = 10


@dataclass(frozen=True, kw_only=True)
class MethodTimes:
    """Measurements of a method.

    Attributes:
        seconds: Seconds per image in each turn.
        batch: Seconds per batch in each turn.
        gmacs: Multiply-adds per image, in 10^9.
    """

    gmacs: float
    seconds: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SharingTimes:
    """Measurements of bundles on a shared backbone, and of separate models.

    Attributes:
        shared: Seconds for one image in every turn, with one pass for all bundles.
        separate: Seconds for one image in every turn, with a pass for each.
        shared_batch: Seconds for a batch, with one pass for all bundles.
        separate_batch: Seconds for a batch, with a pass for each.
        bound: Speedup according to the multiply-adds.
    """

    bound: float
    shared: list[float] = field(default_factory=list)
    separate: list[float] = field(default_factory=list)
    shared_batch: list[float] = field(default_factory=list)
    separate_batch: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        """Speedup by sharing, on one image."""
        return paired_ratio(self.separate, self.shared)


@dataclass(frozen=True, kw_only=True)
class PredictResult(Comparison[MethodTimes]):
    """Results of a measurement of predictions; ``sharing`` maps the number of bundles to measurements."""

    sharing: Mapping[int, SharingTimes]


def sharing_bound(frozen: float, trained: float, bundles: int) -> float:
    """Speedup of N bundles on a shared pass over N models by multiply-adds: ``N (F + T) / (F + N T)``.

    Args:
        frozen: F, multiply-adds of the backbone.
        trained: T, multiply-adds of one bundle.
        bundles: N.
    """
    return bundles * (frozen + trained) / (frozen + bundles * trained)


def measure_predictions(plan: PredictPlan, say: Say = lambda text: None) -> PredictResult:
    """Measures a plan.

    Args:
        plan: The plan.
        say: Called with progress messages.

    Raises:
        ConfigError: The plan is invalid.
        WeightsError: Pretrained weights are unavailable.
    """
    if any(bundles < 1 for bundles in plan.bundles):
        raise ConfigError(f"--bundles {' '.join(map(str, plan.bundles))}: each must be at least 1.")
    device = choose_device(plan.device)
    precision = resolve_precision(plan.config.loop.precision, device)
    workloads = plan.workloads(precision)
    if any(workload.config.loop.cache_features for workload in workloads):
        raise ConfigError("Features are only cached for training images, not in prediction: omit :cached.")
    num_classes = workloads[0].num_classes
    backbones, functions = Backbones(), dict[str, tuple[Pass, list[float]]]()
    methods: dict[str, MethodTimes] = {}
    for workload in workloads:
        say(f"building {workload.label}")
        cost = step_gmacs(workload.config, plan.size, num_classes=num_classes)
        times = methods[workload.label] = MethodTimes(gmacs=cost["frozen"] + cost["trained"])
        passes = _Passes(workload, backbones, device, models=1)
        functions[f"{workload.label}, one image"] = (passes.make_pass(1, shared=False), times.seconds)
        functions[f"{workload.label}, a batch"] = (passes.make_pass(plan.batch_size, shared=False), times.batch)
    reference = next(workload for workload in workloads if workload.label == REFERENCE)
    cost = step_gmacs(reference.config, plan.size, num_classes=num_classes)
    sharing = {
        bundles: SharingTimes(bound=sharing_bound(cost["frozen"], cost["trained"], bundles)) for bundles in plan.bundles
    }
    for bundles, shared in sharing.items():
        passes = _Passes(reference, backbones, device, models=bundles)
        functions[f"{bundles} shared"] = (passes.make_pass(1, shared=True), shared.shared)
        functions[f"{bundles} separate"] = (passes.make_pass(1, shared=False), shared.separate)
        functions[f"{bundles} shared, a batch"] = (passes.make_pass(plan.batch_size, shared=True), shared.shared_batch)
        functions[f"{bundles} separate, a batch"] = (
            passes.make_pass(plan.batch_size, shared=False),
            shared.separate_batch,
        )
    machine = describe_machine(device)
    watch = Stopwatch(device)
    passes_by_name = {name: functools.partial(watch.time, take) for name, (take, _) in functions.items()}
    for name, seconds in run_interleaved(passes_by_name, turns=plan.turns, warmup=plan.warmup, say=say).items():
        functions[name][1].extend(seconds)
    return PredictResult(
        recipe=plan.config.name,
        size=plan.size,
        batch_size=plan.batch_size,
        num_classes=num_classes,
        precision=precision,
        machine=machine,
        methods=methods,
        sharing=sharing,
    )


class _Passes:
    """One method's models on a backbone, ready to predict."""

    def __init__(self, workload: Workload, backbones: Backbones, device: torch.device, *, models: int) -> None:
        config = workload.config
        precision = config.loop.precision
        assert precision != "auto", "resolved before"
        self.dtype = DTYPES[precision]
        self.device = device
        self.workload = workload
        self.backbone: Backbone = backbones.open(config).to(device)
        classes = [f"class {index}" for index in range(workload.num_classes)]
        task: Any = bare_task(config.task, {"classes": classes, "colours": [[0, 0, 0]] * len(classes)})
        self.models: list[Head] = [
            build_head(override(config, {"seed": seed}), self.backbone, task).to(device).eval()
            for seed in range(models)
        ]
        # After the heads have copied pretrained weights.
        if self.dtype != torch.float32:
            self.backbone.set_precision(self.dtype)

    def make_pass(self, images: int, *, shared: bool) -> Pass:
        """A function that predicts with all models, with a shared backbone pass or one for each."""
        image_BCHW = self._images(images)
        groups = [self.models] if shared else [[model] for model in self.models]

        @torch.inference_mode()
        def take() -> object:
            return [output for models in groups for output in self._pass(models, image_BCHW)]

        return take

    def _pass(self, models: Sequence[Head], image_BCHW: Tensor) -> list[object]:
        request = functools.reduce(operator.or_, (model.request(train=False) for model in models))
        taps = self.backbone(image_BCHW, request)
        with autocast(self.device.type, self.dtype):
            return [model(taps) for model in models]

    def _images(self, count: int) -> Tensor:
        image_BCHW: Tensor = random_batch(replace(self.workload, batch_size=count)).image_BCHW
        return image_BCHW.to(self.device)
