"""The settings of a run, of the optimizer and of the training loop (see ``vitsplit.config``).

Defaults are the paper's (Section 4.1, Table 10). Every field is one flag (``--crop-size 512 512``), so names are unique
over all classes. The resolved configuration is saved with every run (``config.json``), for use with ``--config``.
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
"""Settings in the folder of a run: the resolved configuration, and before it exists the settings as given."""

Tracker = Literal["tensorboard", "wandb"]
Sharding = Literal["none", "fsdp2", "zero2", "zero3"]


class OptimConfig(Settings):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0, le=1e3)] = 2e-4
    """Peak learning rate."""
    task_head_lr_scale: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    """Learning rate of the task head, or of the pretrained weights that a baseline tunes, as a multiple of `lr`."""
    language_model_lr_scale: Annotated[float, Field(ge=0, le=1e4)] = 1.0
    """Learning rate of a language model, or of its adapters, as a multiple of `lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate decay of tuned blocks: squared for the last block, cubed for the one before; None: no
    decay."""
    weight_decay: Annotated[float, Field(ge=0, le=1e3)] = 1e-2
    """AdamW's weight decay."""
    decay_norms: bool = True
    """Apply weight decay to norms and biases too, as the release does for segmentation."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's betas."""
    schedule: Literal["poly", "one-cycle", "cosine", "warmup-cosine", "step", "constant"] = "poly"
    """Learning rate schedule. All but one-cycle are multiplied by a linear warm-up. The cosine decay of `cosine` starts
    at step 0, as in mmcv; that of `warmup-cosine` after the warm-up, as in transformers and LLaVA-1.5."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 1500
    """Steps of linear warm-up; at most a tenth of the run."""
    warmup_start: Share = 1e-6
    """Multiple of the learning rate at the first step of the warm-up."""
    poly_power: Annotated[float, Field(ge=0, le=100)] = 0.9
    """Power of the polynomial decay."""
    final_div_factor: Annotated[float, Field(ge=1, le=1e12)] = 1e4
    """Initial divided by final learning rate of `schedule one-cycle`: PyTorch's default; the release uses 100."""
    step_milestones: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(max_length=1000)] = (
        8 / 12,
        11 / 12,
    )
    """Fractions of the run at which `schedule step` lowers the learning rate: after epochs 8 and 11 of 12."""
    step_gamma: Share = 0.1
    """Factor on the learning rate at every milestone of `schedule step`."""
    clip_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Maximum norm of the gradient, for gradient clipping; None: no clipping."""


class LoopConfig(Settings):
    """Settings of the training loop."""

    steps: Annotated[int, Field(ge=1, le=10**9)] = 40_000
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = 16
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    accumulate: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Gradient accumulation: micro-batches per optimizer step. Reduces memory; the result is the same."""
    precision: Precision = "auto"
    """auto: bf16 on GPUs that support it, and on CPUs where a benchmark finds it faster; fp16 on other GPUs; otherwise
    fp32."""
    bundle_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrices in saved bundles; bf16 halves their size."""
    sharding: Sharding = "none"
    """Shard trainable parameters (and a language model) over GPUs: PyTorch FSDP2, or DeepSpeed ZeRO stage 2 or 3."""
    compile: bool = False
    """Compile backbone and head with torch.compile."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of an exponential moving average of the weights, which is used for evaluation and saved; None: no EMA."""
    seed: Seed = 0
    """Random seed of initial weights, image order and augmentation."""
    workers: Annotated[int, Field(ge=-1, le=256)] = -1
    """Data loading processes; -1: the number of cores, at most 8 (none on a machine with two cores)."""
    log_every: Annotated[int, Field(ge=1, le=10**9)] = 10
    """Steps between two rows of `metrics.jsonl`."""
    eval_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between evaluations, with one at the end in any case; 0: a tenth of the run, at least 200."""
    checkpoint_every: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Steps between checkpoints for `--resume`; 0: a tenth of the run, at most 1000."""
    patience: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Early stopping: stop after this many consecutive evaluations without improvement; None: no early stopping."""
    max_seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Stop after this many seconds of training steps (evaluations not counted), and evaluate; None: no limit."""
    cache_features: Annotated[int, Field(ge=0, le=10**4)] = 0
    """Number of fixed views of every training image whose frozen features are cached on disk, in bf16; 0: no cache."""
    cache_folder: Annotated[Name | None, Opens(writes=True)] = None
    """Folder of cached features, which runs can share; None: `features` in vitsplit's cache folder."""
    cache_limit_gb: Annotated[float, Field(ge=0, le=1e6)] = 20.0
    """Maximum disk space of a run's cached features, in 10^9 bytes."""
    track: Annotated[tuple[Tracker, ...], Field(max_length=8)] = ("tensorboard",)
    """Trackers, in addition to `metrics.jsonl`."""


class GeometryConfig(Settings):
    """One random crop of an image for several heads, drawn from the image's size only, independent of labels.

    Zooming in by a factor s divides depths by s (Eigen et al. 2014, Section 3.4).
    """

    crop_size: Size = (252, 336)
    """Height and width of the training crops."""
    image_scale: Size | None = (1024, 252)
    """Maximum longest and shortest side to which images are resized, keeping their aspect ratio; None: no resizing."""
    scale_range: tuple[Factor, Factor] = (0.75, 1.5)
    """Range of the random factor on `image_scale` in training; depths are divided by it (1 1: no scaling)."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of the padding below and to the right of a training image: black, or the mean that pixels are normalized
    with (zero after normalization), as in the release."""


TaskConfigT = TypeVar("TaskConfigT")


class HeadConfig(Settings, Generic[TaskConfigT]):
    """Settings of one head: a method and a decoder for one task, and how they are optimized."""

    name: str = "custom"
    """Name of the recipe that these settings are based on."""
    task: TaskConfigT
    """Settings of the task."""
    method: MethodConfig = SplitConfig()
    """Settings of the method: ViT-Split or a baseline."""
    optim: OptimConfig = OptimConfig()
    """Settings of the optimizer."""


class FlatConfig(HeadConfig[TaskConfigT]):
    """Settings of one head together with the shared ones, as flags and a bundle's card have them."""

    backbone: BackboneConfig = BackboneConfig()
    """Settings of the frozen model."""
    loop: LoopConfig = LoopConfig()
    """Settings of the training loop."""


class TrainConfig(Settings):
    """All settings of a run: its heads, and what they share."""

    geometry: GeometryConfig | None = None
    """The crop that all heads share; None: a single head with its task's own augmentation."""
    backbone: BackboneConfig = BackboneConfig()
    """Settings of the frozen model."""
    loop: LoopConfig = LoopConfig()
    """Settings of the training loop."""
    heads: Mapping[str, HeadConfig[Any]]
    """The heads, by name."""

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

    def for_head(self, name: str) -> TrainConfig:
        """The configuration of one head, as its bundle records it: without geometry and other heads."""
        return replace(self, geometry=None, heads={name: self.heads[name]})

    def change(self, **changes: Any) -> TrainConfig:
        """The configuration of a single head with some of the head's or the shared fields changed."""
        shared = {each: changes.pop(each) for each in ("geometry", "backbone", "loop") if each in changes}
        ((name, head),) = self.heads.items()
        return replace(self, heads={name: replace(head, **changes)}, **shared)

    def flat(self, name: str) -> FlatConfig[Any]:
        """Settings of one head together with the shared ones; ``task`` is the geometry if heads share a crop."""
        head = self.heads[name]
        own = {each.name: getattr(head, each.name) for each in fields(head)}
        if self.geometry is not None:
            own["task"] = self.geometry
        return FlatConfig(**own, backbone=self.backbone, loop=self.loop)

    def qualified_name(self, head: str, name: str) -> str:
        """Name of a metric, file or folder of a head: ``head/name`` if heads share a crop, otherwise ``name``."""
        return name if self.geometry is None else f"{head}/{name}"


def one_head(
    *, task: TaskConfig, backbone: BackboneConfig | None = None, loop: LoopConfig | None = None, **head: Any
) -> TrainConfig:
    """The configuration of a single head, which has its task's name.

    Args:
        task: Settings of the task.
        backbone: Settings of the frozen model; None: the defaults.
        loop: Settings of the training loop; None: the defaults.
        head: Other fields of ``HeadConfig``.
    """
    heads = {task.name: HeadConfig(task=task, **head)}
    return TrainConfig(backbone=backbone or BackboneConfig(), loop=loop or LoopConfig(), heads=heads)
