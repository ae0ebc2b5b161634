"""Predictions of several methods side by side, and of several bundles on one backbone against as many separate models.

Everybody takes turns. What is timed is a pass from pixels on the device to the decoder's output: reading, enlarging and
writing cost the same whatever the method is.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vitsplit.analysis.bench.train_step import REFERENCE, Say, method_workloads
from vitsplit.analysis.bench.workload import Backbones, Workload, random_batch
from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import Spread, Stopwatch, describe_machine, paired_ratio
from vitsplit.backbone import Backbone
from vitsplit.engine.config import TrainConfig
from vitsplit.engine.override import override
from vitsplit.engine.precision import DTYPES, autocast, resolve_precision
from vitsplit.errors import ConfigError
from vitsplit.inference.predictor import choose_device
from vitsplit.model import build_model
from vitsplit.tasks import bare_task
from vitsplit.tasks.model import TaskModel
from vitsplit.types import TapRequest

Taker = Callable[[], object]
PAPER = {
    "full-finetune": "about 0.7",
    "upernet": "-",
    "vit-adapter": "2 to 6",
    "vit-comer": "2 to 6",
}
"""How many times as long as ViT-Split a method predicts in the paper (Appendix C, segmentation)."""


@dataclass(frozen=True, kw_only=True)
class PredictPlan:
    """What is to be measured.

    Attributes:
        config: The recipe, with whatever settings were changed.
        methods: ``NAME`` or ``NAME:DECODER`` each.
        bundles: Numbers of ViT-Split bundles that share a backbone.
        size: Height and width of the images.
        batch_size: Images at a time for the throughput; the latency is that of one image.
        num_classes: K; None: that of the recipe's data.
        turns: Turns that count.
        warmup: Turns before them that do not.
        device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    config: TrainConfig[Any]
    methods: tuple[str, ...]
    bundles: tuple[int, ...] = (1, 2, 3, 4)
    size: tuple[int, int] = (512, 512)
    batch_size: int = 4
    num_classes: int | None = None
    turns: int = 10
    warmup: int = 2
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class MethodTimes:
    """What was measured of a method.

    Attributes:
        latency: Seconds for one image, in every turn.
        batch: Seconds for a batch, in every turn.
        gmacs: Multiply-adds of one image, in 10^9.
    """

    gmacs: float
    latency: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SharingTimes:
    """Bundles on one backbone, and as many models with a backbone each.

    Attributes:
        shared: Seconds for one image in every turn, with one pass for all bundles.
        separate: Seconds for one image in every turn, with a pass for each.
        shared_batch: Seconds for a batch, with one pass for all bundles.
        separate_batch: Seconds for a batch, with a pass for each.
        bound: How many times as fast multiply-adds allow sharing to be.
    """

    bound: float
    shared: list[float] = field(default_factory=list)
    separate: list[float] = field(default_factory=list)
    shared_batch: list[float] = field(default_factory=list)
    separate_batch: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        """How many times as fast sharing is, on one image."""
        return paired_ratio(self.separate, self.shared)


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """A whole measurement; ``sharing`` is by the number of bundles, ``methods`` by label."""

    recipe: str
    size: tuple[int, int]
    batch_size: int
    num_classes: int
    precision: str
    machine: Mapping[str, Any]
    methods: Mapping[str, MethodTimes]
    sharing: Mapping[int, SharingTimes]

    def time_ratio(self, label: str) -> Spread:
        """How many times as long as ViT-Split a method takes for one image."""
        return paired_ratio(self.methods[label].latency, self.methods[REFERENCE].latency)

    def gmacs_ratio(self, label: str) -> float:
        """The same, if time went by multiply-adds."""
        return self.methods[label].gmacs / self.methods[REFERENCE].gmacs


def sharing_bound(frozen: float, trained: float, bundles: int) -> float:
    """How many times as fast N bundles on one pass can be as N models: ``N (F + T) / (F + N T)``.

    Args:
        frozen: F, multiply-adds of the backbone's pass.
        trained: T, those of one bundle.
        bundles: N.
    """
    return bundles * (frozen + trained) / (frozen + bundles * trained)


def check_plan(plan: PredictPlan) -> None:
    """Refuses what cannot be measured.

    Raises:
        ConfigError: A number is out of range.
    """
    for name, value, least in (
        ("turns", plan.turns, 1),
        ("warmup", plan.warmup, 0),
        ("batch-size", plan.batch_size, 1),
    ):
        if value < least:
            raise ConfigError(f"--{name} must be at least {least}, not {value}.")
    if any(bundles < 1 for bundles in plan.bundles):
        raise ConfigError(f"--bundles {' '.join(map(str, plan.bundles))}: each is at least 1.")


def measure_predictions(plan: PredictPlan, say: Say = lambda text: None) -> PredictResult:
    """Measures a plan.

    Args:
        plan: What is to be measured.
        say: Is told what goes on.

    Raises:
        ConfigError: The plan cannot be carried out.
        WeightsError: Pretrained weights were asked for and cannot be had.
    """
    check_plan(plan)
    device = choose_device(plan.device)
    precision = resolve_precision(plan.config.loop.precision, device)
    base = override(plan.config, {"precision": precision})
    workloads = method_workloads(
        base,
        plan.methods,
        size=plan.size,
        batch_size=plan.batch_size,
        num_classes=plan.num_classes,
        device=plan.device,
    )
    if any(workload.config.loop.cache_features for workload in workloads):
        raise ConfigError("Features are kept of training images, not of those that are predicted: leave cached away.")
    num_classes = workloads[0].num_classes
    backbones, takers = Backbones(), dict[str, tuple[Taker, list[float]]]()
    methods: dict[str, MethodTimes] = {}
    for workload in workloads:
        say(f"building {workload.label}")
        cost = step_gmacs(workload.config, plan.size, num_classes=num_classes)
        times = methods[workload.label] = MethodTimes(gmacs=cost["frozen"] + cost["trained"])
        passes = _Passes(workload, backbones, device, models=1)
        takers[f"{workload.label}, one image"] = (passes.one_by_one(1), times.latency)
        takers[f"{workload.label}, a batch"] = (passes.one_by_one(plan.batch_size), times.batch)
    reference = next(workload for workload in workloads if workload.label == REFERENCE)
    cost = step_gmacs(reference.config, plan.size, num_classes=num_classes)
    sharing = {
        bundles: SharingTimes(bound=sharing_bound(cost["frozen"], cost["trained"], bundles)) for bundles in plan.bundles
    }
    for bundles, shared in sharing.items():
        passes = _Passes(reference, backbones, device, models=bundles)
        takers[f"{bundles} shared"] = (passes.together(1), shared.shared)
        takers[f"{bundles} separate"] = (passes.one_by_one(1), shared.separate)
        takers[f"{bundles} shared, a batch"] = (passes.together(plan.batch_size), shared.shared_batch)
        takers[f"{bundles} separate, a batch"] = (passes.one_by_one(plan.batch_size), shared.separate_batch)
    machine = describe_machine(device)
    _take_turns(takers, Stopwatch(device), turns=plan.turns, warmup=plan.warmup, say=say)
    return PredictResult(
        recipe=base.name,
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
        task: Any = bare_task(config, {"classes": classes, "colours": [[0, 0, 0]] * len(classes)})
        self.models: list[TaskModel] = [
            build_model(override(config, {"seed": seed}), self.backbone, task).to(device).eval()
            for seed in range(models)
        ]
        # After the heads have copied what they start with.
        if self.dtype != torch.float32:
            self.backbone.set_precision(self.dtype)

    def one_by_one(self, images: int) -> Taker:
        """A pass of the backbone for every model."""
        image_BCHW = self._images(images)

        @torch.inference_mode()
        def take() -> object:
            return [self._predict(model, image_BCHW, model.request(train=False)) for model in self.models]

        return take

    def together(self, images: int) -> Taker:
        """One pass of the backbone for all models."""
        image_BCHW = self._images(images)
        request = TapRequest()
        for model in self.models:
            request = request | model.request(train=False)

        @torch.inference_mode()
        def take() -> object:
            taps = self.backbone(image_BCHW, request)
            with autocast(self.device.type, self.dtype):
                return [model(taps) for model in self.models]

        return take

    def _predict(self, model: TaskModel, image_BCHW: Tensor, request: TapRequest) -> object:
        taps = self.backbone(image_BCHW, request)
        with autocast(self.device.type, self.dtype):
            return model(taps)

    def _images(self, count: int) -> Tensor:
        image_BCHW: Tensor = random_batch(replace(self.workload, batch_size=count)).image_BCHW
        return image_BCHW.to(self.device)


def _take_turns(
    takers: Mapping[str, tuple[Taker, list[float]]], watch: Stopwatch, *, turns: int, warmup: int, say: Say
) -> None:
    """Lets everybody predict in every turn. Who begins changes from turn to turn."""
    order: Sequence[str] = list(takers)
    for turn in range(warmup + turns):
        first = turn % len(order)
        for name in [*order[first:], *order[:first]]:
            take, seconds = takers[name]
            watch.start()
            take()
            took, _ = watch.stop("pass")
            if turn >= warmup:
                seconds.append(took)
        say(f"turn {turn + 1 - warmup} of {turns}" if turn >= warmup else "warming up")
