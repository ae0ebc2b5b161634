"""The settings of a run, of the optimizer and of the training loop (see ``vitsplit.config``).

Defaults are the paper's (Section 4.1, Table 10). Every field is one flag (``--crop-size 512 512``), so names are unique
over all classes. The resolved configuration is written beside every result (``config.json``) and can be given back
(``--config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from vitsplit.backbone.config import BackboneConfig
from vitsplit.config import Factor, Name, Opens, Precision, Seed, Settings, Share, Size
from vitsplit.methods import MethodConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks import TaskConfig

CONFIG_FILE, START_FILE = "config.json", ".start.json"
"""Settings in the folder of a run: resolved, once it exists; as they were given, before that."""

Tracker = Literal["tensorboard", "wandb"]
Sharding = Literal["none", "fsdp2", "zero2", "zero3"]


class OptimConfig(Settings):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=1e3)] = 2e-4
    """Peak learning rate."""
    task_head_lr_scale: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    """The task head, or whatever of the pretrained model a baseline tunes, learns at this multiple of `lr`."""
    language_model_lr_scale: Annotated[float, Field(ge=0, le=1e4)] = 1.0
    """A language model, or its adapters, learns at this multiple of `lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """On top of that per tuned block: the last learns at its square, the one before at its cube; None: all alike."""
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 1e-2
    """AdamW's weight decay."""
    decay_norms: bool = True
    """Decay norms and biases too, as the release does for segmentation."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's betas."""
    schedule: Literal["poly", "one-cycle", "cosine", "warmup-cosine", "step", "constant"] = "poly"
    """Shape of the learning rate. All but one-cycle are multiplied by the warm-up; the cosine of `cosine` begins with
    the run, as in mmcv, that of `warmup-cosine` after the warm-up, as in transformers and LLaVA-1.5."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 1500
    """Steps of linear warm-up; a run shorter than ten warm-ups warms up for a tenth of its steps."""
    warmup_start: Share = 1e-6
    """Multiple of the learning rate at the first step of the warm-up."""
    poly_power: Annotated[float, Field(ge=0, le=100)] = 0.9
    """Power of the polynomial decay."""
    final_div_factor: Annotated[float, Field(ge=1, le=1e12)] = 1e4
    """`schedule one-cycle` ends at its first learning rate divided by this: PyTorch's default; the release has 100."""
    step_milestones: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(max_length=1000)] = (
        8 / 12,
        11 / 12,
    )
    """Shares of the run after which `schedule step` lowers the learning rate: epochs 8 and 11 of 12."""
    step_gamma: Share = 0.1
    """What it is multiplied with at every milestone."""
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Largest norm of the gradient; None: not clipped."""


class LoopConfig(Settings):
    """How long, how large, how often, how precise."""

    steps: Annotated[int, Field(ge=1, le=10**9)] = 40_000
    """Optimiser steps."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Images per optimiser step, over all processes and accumulated micro-batches."""
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Micro-batches per optimiser step: less memory, the same result."""
    precision: Precision = "auto"
    """auto: bf16 on GPUs that have it and processors that are measured faster in it; fp16 on other GPUs; else fp32."""
    bundle_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrices in saved bundles; bf16 halves their size."""
    sharding: Sharding = "none"
    """Spread what trains (and a language model) over GPUs: PyTorch's FSDP2, or DeepSpeed's ZeRO stage 2 or 3."""
    compile: bool = False
    """Compile backbone and head with torch.compile."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is then what is evaluated and saved."""
    seed: Seed = 0
    """Seed of initial weights, order of images and augmentation."""
    workers: Annotated[int, Field(ge=-1, le=256)] = -1
    """Processes that read and augment images; -1: the number of cores, at most 8 (none on a machine with two)."""
    log_every: Annotated[int, Field(ge=1, le=10**9)] = 10
    """Steps between two rows of `metrics.jsonl`."""
    eval_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between evaluations; 0: ten times in a run, at least 200 steps apart, and always at the end."""
    checkpoint_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between checkpoints for `--resume`; 0: every tenth of the run, at most 1000 steps apart."""
    patience: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Stop after this many evaluations in a row without a better result."""
    max_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Stop, and evaluate, when the steps have taken so many seconds (evaluations not counted); None: no limit."""
    cache_features: Annotated[int, Field(ge=0, le=10**4)] = 0
    """Views of every training image whose frozen features are computed once and kept on disk, in bf16; 0: none."""
    cache_folder: Annotated[Name | None, Opens(writes=True)] = None
    """Folder of the kept features, of any number of runs; None: `features` in vitsplit's cache folder."""
    cache_limit_gb: Annotated[float, Field(ge=0, le=1e6)] = 20.0
    """The most that the features of a run may take on disk, in 10^9 bytes."""
    track: Annotated[tuple[Tracker, ...], Field(max_length=8)] = ("tensorboard",)
    """Trackers that follow the run beside `metrics.jsonl`."""


class GeometryConfig(Settings):
    """One crop of an image for several heads, drawn from the image's size alone, without a look at any label.

    Zooming in by s brings everything s times as near, so depths are divided by s (Eigen et al. 2014, Section 3.4).
    """

    crop_size: Size = (252, 336)
    """Height and width of the training crops."""
    image_scale: Size | None = (1024, 252)
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    scale_range: tuple[Factor, Factor] = (0.75, 1.5)
    """Random factor on `image_scale` in training; depths are divided by it (1 1: as they are)."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""


TaskConfigT = TypeVar("TaskConfigT")


class HeadConfig(Settings, Generic[TaskConfigT]):
    """Settings of one head: a method and a decoder for one task, and how they are optimized."""

    name: str = "custom"
    """Name of the recipe that these settings started from."""
    task: TaskConfigT
    """Settings of the task."""
    method: MethodConfig = SplitConfig()
    """Settings of the method: the paper's, or one that it is compared with."""
    optim: OptimConfig = OptimConfig()
    """Settings of the optimizer."""


class FlatConfig(HeadConfig[TaskConfigT]):
    """Settings of one head beside those that it shares: what flags name, and what a bundle's card records."""

    backbone: BackboneConfig = BackboneConfig()
    """Settings of the frozen model."""
    loop: LoopConfig = LoopConfig()
    """Settings of the training loop."""


class TrainConfig(Settings):
    """Everything that decides the outcome of a run, except the data themselves: heads, and what they share."""

    geometry: GeometryConfig | None = None
    """The crop that all heads share; None: the only head has its task's own augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """Settings of the frozen model."""
    loop: LoopConfig = LoopConfig()
    """Settings of the training loop."""
    heads: Mapping[str, HeadConfig[Any]]
    """The heads, by their names."""

    @property
    def head(self) -> HeadConfig[Any]:
        """The only head.

        Raises:
            ValueError: There are several.
        """
        (head,) = self.heads.values()
        return head

    @property
    def name(self) -> str:
        """The recipe of the only head."""
        return self.head.name

    @property
    def method(self) -> Any:
        """The method's settings of the only head, a ``MethodConfig``."""
        return self.head.method

    @property
    def task(self) -> Any:
        """The task's settings of the only head."""
        return self.head.task

    @property
    def optim(self) -> OptimConfig:
        """The optimizer's settings of the only head."""
        return self.head.optim

    def optims(self) -> dict[str, OptimConfig]:
        """Settings of the optimizer, by head."""
        return {name: head.optim for name, head in self.heads.items()}

    def only(self, name: str) -> TrainConfig:
        """The configuration of one head as its bundle records it: nothing tells that it is trained beside others."""
        return replace(self, geometry=None, heads={name: self.heads[name]})

    def change(self, **changes: Any) -> TrainConfig:
        """A configuration of one head with some of its fields changed, or of those that it shares."""
        shared = {each: changes.pop(each) for each in ("geometry", "backbone", "loop") if each in changes}
        ((name, head),) = self.heads.items()
        return replace(self, heads={name: replace(head, **changes)}, **shared)

    def flat(self, name: str) -> FlatConfig[Any]:
        """Settings of one head beside those that it shares; its task's are the geometry where heads share a crop."""
        head = self.heads[name]
        own = {each.name: getattr(head, each.name) for each in fields(head)}
        if self.geometry is not None:
            own["task"] = self.geometry
        return FlatConfig(**own, backbone=self.backbone, loop=self.loop)

    def named(self, head: str, name: str) -> str:
        """What a figure, a file or a folder of a head is called: ``head/name`` where heads share a crop, else
        ``name``."""
        return name if self.geometry is None else f"{head}/{name}"


def one_head(
    *, task: TaskConfig, backbone: BackboneConfig | None = None, loop: LoopConfig | None = None, **head: Any
) -> TrainConfig:
    """The configuration of one head, under its task's name.

    Args:
        task: Settings of the task.
        backbone: Settings of the frozen model; None: the defaults.
        loop: Settings of the training loop; None: the defaults.
        head: Other fields of ``HeadConfig``.
    """
    heads = {task.name: HeadConfig(task=task, **head)}
    return TrainConfig(backbone=backbone or BackboneConfig(), loop=loop or LoopConfig(), heads=heads)
