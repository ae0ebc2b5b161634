"""A training step of a method, ready to be taken: the very step that ``vitsplit train`` takes, on random images.

Speed depends on shapes, and on weights and images hardly at all.

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

KEPT = "cached"
"""In a decoder's place: the method's own decoder, on features that are kept on disk."""
PARTS = ("frozen forward", "forward", "loss", "backward", "optimiser", "other")
"""What a step is divided in: the frozen backbone; what trains and the decoder; the loss; the backward pass; the update
with the gradient's norm; and everything else, such as copies to the device."""
MAX_CLASSES = 255


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A method, and what a step of it works on. Goes to another process as it is.

    Attributes:
        label: As it was asked for: ``vit-adapter:linear``.
        config: Its whole configuration.
        size: Height and width of the images.
        batch_size: Images per step.
        num_classes: K; 0 for depth.
        device: Where it runs: ``cpu``, ``cuda`` or ``cuda:1``.
    """

    label: str
    config: TrainConfig
    size: tuple[int, int]
    batch_size: int
    num_classes: int
    device: str

    @property
    def decoder(self) -> str:
        """What decodes its maps."""
        return decoder_of(self.config)[0]


def method_config(
    base: TrainConfig, label: str, own: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> TrainConfig:
    """The configuration of a method that is named as ``NAME``, ``NAME:DECODER`` or ``NAME:cached``.

    Args:
        base: The recipe.
        label: The method.
        own: Settings that only other methods than the recipe's have, by the method's name.

    Raises:
        ConfigError: There is no such method or decoder, or the method is not for the task or the decoder, or has no
            frozen features to keep.
    """
    name, _, form = label.partition(":")
    decoders = tuple(base.task.decoders)
    if name not in METHODS.names():
        raise ConfigError(f"--methods {label}: there is no method '{name}'. Methods: {', '.join(METHODS.names())}.")
    if ":" in label and form not in (*decoders, KEPT):
        raise ConfigError(
            f"--methods {label}: there is no decoder '{form}'. Decoders: {', '.join(decoders)}; {KEPT} stands for the "
            "method's own on cached features."
        )
    settings: dict[str, Any] = {"method": name, **own.get(name, {}), "decoder": form if form in decoders else "auto"}
    if form == KEPT:
        settings["cache_features"] = base.loop.cache_features or 1
    config = override(base, settings)
    check_method(config)
    return config


def random_batch(workload: Workload, seed: int = 0) -> Any:
    """A ``Batch`` of random images with random labels.

    Raises:
        ConfigError: The task has labels that cannot be made up so.
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
    """Frozen backbones, each loaded once however many methods want it."""

    def __init__(self) -> None:
        self._loaded: dict[BackboneConfig, Backbone] = {}

    def open(self, config: TrainConfig) -> Backbone:
        """The backbone of a configuration."""
        wanted = backbone_settings(config)
        if wanted not in self._loaded:
            self._loaded[wanted] = open_backbone(wanted)
        return self._loaded[wanted]

    def drop_weights(self) -> None:
        """Leaves of the backbones what prepares pixels: what a method with a trunk of its own needs of them."""
        for backbone in self._loaded.values():
            backbone.model.to("meta")


def open_accelerator(device: str) -> Accelerator:
    """The one process of a benchmark on a device; a process can have only one.

    Raises:
        ConfigError: There is no such device, or the process works on another one already.
    """
    wanted = torch.device(device)
    if wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {device}: choose cpu or cuda.")
    if wanted.type == "cuda":
        if not torch.cuda.is_available() or (wanted.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"--device {device}: PyTorch finds no such GPU here. Choose cpu.")
        torch.cuda.set_device(wanted.index or 0)
    # accelerate takes the first device that a process names.
    PartialState(cpu=wanted.type == "cpu")
    accelerator = make_accelerator()
    if accelerator.device.type != wanted.type:
        raise ConfigError(f"--device {device}: this process works on {accelerator.device} already. Start another.")
    if accelerator.num_processes > 1:
        raise ConfigError("Training steps are measured in one process: start it without torchrun or accelerate launch.")
    return accelerator


class TimedStep:
    """Takes training steps of a method and divides their time among ``PARTS``.

    Args:
        workload: What is run, with a precision that is not ``auto``.
        accelerator: Of the process.
        backbones: Where the backbone comes from.

    Attributes:
        model: What trains.
        width: D of the backbone.
        trained_parameters: How many numbers train.

    Raises:
        ConfigError: Settings that cannot work.
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
            self._kept = tempfile.TemporaryDirectory(prefix="vitsplit-bench-")  # removed with this object
            store = FeatureStore(Path(self._kept.name), backbone.info.weights_hash, "bench")
            trainer.features = FeatureCache(store, backbone, timed_backbone)
            look_up = LookUp(store, model.request(train=True))
        share = replace(workload, batch_size=workload.batch_size // config.loop.accumulate)
        self._batches = _read(collate({name: [None]}, {name: lambda _: random_batch(share)}), look_up)
        if look_up is not None:  # what is measured are steps that find everything
            trainer.taps(next(self._batches).to(accelerator.device))
        self._taken, self._limit = 0, config.loop.steps

    def __call__(self) -> tuple[float, dict[str, float]]:
        """Takes the next step; the seconds that it took, and those of each part.

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
    """The same batch for ever. What is kept of it is read anew every time, as in training without reading ahead."""
    while True:
        yield ReadBatch(batch, None if look_up is None else look_up(batch.image_BCHW, batch.extent_B2))


def _check(workload: Workload) -> None:
    loop = workload.config.loop
    if loop.sharding != "none":
        raise ConfigError(
            f"--sharding {loop.sharding} is for several GPUs, and steps are measured on one. Leave it away."
        )
    if workload.batch_size % loop.accumulate:
        raise ConfigError(
            f"--batch-size {workload.batch_size} cannot be divided in --accumulate {loop.accumulate} equal parts."
        )


class _TimedModel(nn.Module):
    """A model that marks when it begins and ends."""

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
    """What it wraps, as far as a step calls it, and marks what that does. Before a backward pass comes the loss."""

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
        self.watch.mark("optimiser")
        return norms
