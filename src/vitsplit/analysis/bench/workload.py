"""Training steps of a method, as in ``vitsplit train``, on random images.

Speed depends on shapes, and hardly on weights and images.

Shapes: B batch, H W pixels, K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn

from vitsplit.analysis.measure import Stopwatch
from vitsplit.backbone import Backbone, open_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.engine.feature_cache import FeatureCache, LookUp
from vitsplit.engine.feature_store import FeatureStore
from vitsplit.engine.override import override
from vitsplit.engine.parallelism import Parallelism
from vitsplit.engine.processes import make_accelerator
from vitsplit.engine.run_data import collate
from vitsplit.engine.sampling import ReadBatch
from vitsplit.engine.trainer import RunBackbone, Trainer
from vitsplit.errors import ConfigError
from vitsplit.methods import METHODS
from vitsplit.model import Model, backbone_settings, build_head, check_method, decoder_of
from vitsplit.tasks import bare_task
from vitsplit.train_config import TrainConfig
from vitsplit.types import LayerTaps, TapRequest

CACHED = "cached"
"""In place of a decoder: the default decoder of the method on features cached on disk."""
PARTS = ("frozen forward", "forward", "loss", "backward", "optimizer", "other")
"""Parts of a step: the forward passes of the frozen backbone and of the trained model; the loss; the backward pass; the
update with the gradient norm; and everything else, such as copies to the device."""
MAX_CLASSES = 255


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A method and the input of its steps. Picklable.

    Attributes:
        label: Its label, such as ``vit-adapter:linear``.
        config: Its full configuration.
        size: Height and width of the images.
        batch_size: Images per step.
        num_classes: K; 0 for depth.
        device: The device: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    label: str
    config: TrainConfig
    size: tuple[int, int]
    batch_size: int
    num_classes: int
    device: str

    @property
    def decoder(self) -> str:
        """The name of its decoder."""
        return decoder_of(self.config)[0]


def method_config(
    base: TrainConfig, label: str, own: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> TrainConfig:
    """The configuration of a method given as ``NAME``, ``NAME:DECODER`` or ``NAME:cached``.

    Args:
        base: The recipe.
        label: The method.
        own: Method name to settings that the method of the recipe does not have.

    Raises:
        ConfigError: The method or decoder is unknown, or they are not compatible with each other or the task, or the
            method has no frozen features to cache.
    """
    name, _, form = label.partition(":")
    decoders = tuple(base.task.decoders)
    if name not in METHODS.names():
        raise ConfigError(f"--methods {label}: there is no method '{name}'. Methods: {', '.join(METHODS.names())}.")
    if ":" in label and form not in (*decoders, CACHED):
        raise ConfigError(
            f"--methods {label}: there is no decoder '{form}'. Decoders: {', '.join(decoders)}; {CACHED} stands for "
            "the method's own on cached features."
        )
    settings: dict[str, Any] = {"method": name, **own.get(name, {}), "decoder": form if form in decoders else "auto"}
    if form == CACHED:
        settings["cache_features"] = base.loop.cache_features or 1
    config = override(base, settings)
    check_method(config)
    return config


def random_batch(workload: Workload, seed: int = 0) -> Any:
    """A ``Batch`` of random images with random labels.

    Raises:
        ConfigError: The task does not support random labels.
    """
    task = workload.config.task.task_type()
    if not hasattr(task, "random_batch"):
        raise ConfigError(
            f"The recipe {workload.config.name} is for {task.name}, which has no random labels: training steps are "
            "measured for segmentation and depth, such as with ade20k-small or nyuv2-small."
        )
    generator = torch.Generator().manual_seed(seed)
    image_BCHW = torch.randint(0, 256, (workload.batch_size, 3, *workload.size), dtype=torch.uint8, generator=generator)
    return task.random_batch(image_BCHW, workload.num_classes, generator)


class Backbones:
    """Frozen backbones, each loaded once for all methods."""

    def __init__(self) -> None:
        self._loaded: dict[BackboneConfig, Backbone] = {}

    def open(self, config: TrainConfig) -> Backbone:
        """The backbone of a configuration."""
        wanted = backbone_settings(config)
        if wanted not in self._loaded:
            self._loaded[wanted] = open_backbone(wanted)
        return self._loaded[wanted]

    def drop_weights(self) -> None:
        """Releases the weights of the backbones, for methods that only need their preprocessing."""
        for backbone in self._loaded.values():
            backbone.model.to("meta")


def open_accelerator(device: str) -> Accelerator:
    """The accelerator of a benchmark on a device; a process can have only one.

    Raises:
        ConfigError: There is no such device, or the process already uses another one.
    """
    wanted = torch.device(device)
    if wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: choose cpu or cuda.")
    if wanted.type == "cuda":
        if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"--device {device}: PyTorch finds no such GPU here. Choose cpu.")
        torch.cuda.set_device(wanted.index or 0)
    # accelerate uses the first device set in a process.
    PartialState(cpu=wanted.type == "cpu")
    accelerator = make_accelerator()
    if accelerator.device.type != wanted.type:
        raise ConfigError(f"--device {device}: this process already uses {accelerator.device}. Start another.")
    if accelerator.num_processes > 1:
        raise ConfigError("Training steps are measured in one process: start it without torchrun or accelerate launch.")
    return accelerator


class TimedStep:
    """Runs training steps of a method and measures the time of ``PARTS``.

    Args:
        workload: The workload, with a precision other than ``auto``.
        accelerator: The accelerator of the process.
        backbones: Source of the backbone.

    Attributes:
        model: The trained model.
        width: D of the backbone.
        trained_parameters: Number of trainable parameters.

    Raises:
        ConfigError: The settings are invalid.
    """

    def __init__(self, workload: Workload, accelerator: Accelerator, backbones: Backbones) -> None:
        config = workload.config
        _check(workload)
        backbone = backbones.open(config)
        classes = [f"class {index}" for index in range(workload.num_classes)]
        task: Any = bare_task(config.task, {"classes": classes, "colours": [[0, 0, 0]] * len(classes)})
        (name,) = config.heads
        self.model = model = Model({name: build_head(config, backbone, task)})
        self.width = backbone.width
        self.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.watch = Stopwatch(accelerator.device)
        self.trainer = trainer = Trainer(config, tasks={name: task}, backbone=backbone, model=model)
        trainer.set_up(accelerator)
        trainer.run_backbone = timed_backbone = self._timed_backbone(trainer.run_backbone)
        trainer.parallel = _TimedUpdates(trainer.parallel, self.watch)  # type: ignore[assignment]  # all a step calls
        look_up = None
        if config.loop.cache_features:
            self._cache = tempfile.TemporaryDirectory(prefix="vitsplit-bench-")  # removed with this object
            store = FeatureStore(Path(self._cache.name), backbone.info.weights_hash, "bench")
            trainer.features = FeatureCache(store, backbone, timed_backbone)
            look_up = LookUp(store, model.request(train=True))
        share = replace(workload, batch_size=workload.batch_size // config.loop.accumulate)
        self._batches = _read(collate({name: [None]}, {name: lambda _: random_batch(share)}), look_up)
        if look_up is not None:  # measured steps read everything from the cache
            trainer.taps(next(self._batches).to(accelerator.device))
        self._taken, self._limit = 0, config.loop.steps

    def __call__(self) -> tuple[float, dict[str, float]]:
        """Runs the next step; returns its seconds, in total and by part.

        Raises:
            NotFiniteError: The loss or the gradient is not finite.
        """
        self.watch.start()
        numbers = self.trainer.step(self._taken % self._limit, self._batches)
        self.trainer.check(numbers, numbers.read())
        seconds, parts = self.watch.stop("other")
        self._taken += 1
        return seconds, {name: parts.get(name, 0.0) for name in PARTS}

    def _timed_backbone(self, run_backbone: RunBackbone) -> Any:
        def run(image_BCHW: Tensor, request: TapRequest, extent_B2: Tensor | None) -> LayerTaps:
            self.watch.mark("other")
            taps = run_backbone(image_BCHW, request, extent_B2)
            self.watch.mark("frozen forward")
            return taps

        return run


def _read(batch: Any, look_up: LookUp | None) -> Iterator[ReadBatch]:
    """The same batch repeatedly. Its cached features are read every time, as in training without prefetching."""
    while True:
        yield ReadBatch(batch, None if look_up is None else look_up(batch.image_BCHW, batch.extent_B2))


def _check(workload: Workload) -> None:
    loop = workload.config.loop
    if loop.sharding != "none":
        raise ConfigError(f"--sharding {loop.sharding} requires several GPUs, but steps are measured on one. Omit it.")
    if workload.batch_size % loop.accumulate:
        raise ConfigError(
            f"--batch-size {workload.batch_size} cannot be divided into --accumulate {loop.accumulate} equal parts."
        )


class _TimedModel(nn.Module):
    """A model that marks the start and end of its forward pass."""

    def __init__(self, inner: nn.Module, watch: Stopwatch) -> None:
        super().__init__()
        self.inner = inner
        self.watch = watch

    def forward(self, *inputs: Any) -> Any:
        """As the model."""
        self.watch.mark("other")
        output = self.inner(*inputs)
        self.watch.mark("forward")
        return output


class _TimedUpdates:
    """Wraps ``Parallelism`` with marks. The time before a backward pass is that of the loss."""

    def __init__(self, parallel: Parallelism, watch: Stopwatch) -> None:
        self.parallel = parallel
        self.watch = watch
        self.trained = parallel.trained
        self.optimizer = parallel.optimizer
        self.wrapped = _TimedModel(parallel.wrapped, watch)
        self.zero_grad = parallel.zero_grad
        self.micro_batch = parallel.micro_batch
        self.may_overflow = parallel.may_overflow

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Parallelism``."""
        self.watch.mark("loss")
        self.parallel.backward(loss, last=last)
        self.watch.mark("backward")

    def update(self) -> list[Tensor]:
        """See ``Parallelism``."""
        self.watch.mark("other")
        norms = self.parallel.update()
        self.watch.mark("optimizer")
        return norms
