"""Settings of a joint run: several heads on the same images, each trained as it would be alone.

A joint run is several ordinary configurations with one backbone, one loop and one augmentation. A setting without a
task's name (``--lr 1e-4``) is that of all heads; one with a name (``--depth.lr 3e-4``) is that of one head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, Literal, TypeVar

from vitsplit.engine.config import (
    BackboneConfig,
    BaselineConfig,
    LoopConfig,
    MethodName,
    OptimConfig,
    SplitConfig,
    TrainConfig,
)
from vitsplit.errors import ConfigError
from vitsplit.ranges import MAX_SIDE, Range
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig

TaskConfigT = TypeVar("TaskConfigT")


@dataclass(frozen=True, kw_only=True)
class GeometryConfig:
    """What all heads of a joint run see: one crop of an image, drawn without a look at any label, serves all of them.

    Zooming in by s brings everything s times as near, so depths are divided by s (Eigen et al. 2014, Section 3.4).
    """

    crop_size: Annotated[tuple[int, int], Range(1, MAX_SIDE)] = (252, 336)
    """Height and width of the training crops."""
    image_scale: Annotated[tuple[int, int] | None, Range(1, MAX_SIDE)] = (1024, 252)
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    scale_range: Annotated[tuple[float, float], Range(0.01, 100)] = (0.75, 1.5)
    """Random factor on `image_scale` in training; depths are divided by it (1 1: as they are)."""
    flip: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Generic[TaskConfigT]):
    """One head of a joint run: what it does not share."""

    name: str = "custom"
    """Name of the recipe that these settings started from."""
    method: MethodName = "vitsplit"
    """How images become maps: the paper's way, or one that it is compared with."""
    task: TaskConfigT
    """Settings of the task."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Settings of the method."""
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    """Settings of the other methods."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Settings of the optimiser."""


@dataclass(frozen=True, kw_only=True)
class MultiConfig:
    """Everything that decides the outcome of a joint run, except the data themselves."""

    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """The augmentation that all heads share."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Settings of the frozen model."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Settings of the training loop."""
    segmentation: HeadConfig[SegmentationConfig] | None = None
    """Segmentation's head, if it is trained."""
    depth: HeadConfig[DepthConfig] | None = None
    """Depth's head, if it is trained."""
    detection: HeadConfig[DetectionConfig] | None = None
    """Detection's head, if it is trained."""

    @classmethod
    def of(cls, recipes: Mapping[str, TrainConfig[Any]], **shared: Any) -> MultiConfig:
        """The heads of several ordinary configurations, by their tasks' names, with the settings that they share."""
        config = cls(**shared)
        heads = {
            name: HeadConfig(
                name=recipe.name,
                method=recipe.method,
                task=with_geometry(recipe.task, config.geometry),
                split=recipe.split,
                baseline=recipe.baseline,
                optim=recipe.optim,
            )
            for name, recipe in recipes.items()
        }
        return replace(config, **heads)  # type: ignore[arg-type]

    def heads(self) -> dict[str, HeadConfig[Any]]:
        """The heads that are trained, by their tasks' names."""
        found = {name: getattr(self, name) for name in HEAD_NAMES}
        return {name: head for name, head in found.items() if head is not None}

    def optims(self) -> dict[str, OptimConfig]:
        """Settings of the optimiser, by head."""
        return {name: head.optim for name, head in self.heads().items()}

    def own(self, name: str) -> TrainConfig[Any]:
        """The configuration of one head as an ordinary run has it: what its bundle records."""
        head = self.heads()[name]
        return self._with(head, head.task)

    def view(self, head: HeadConfig[Any]) -> TrainConfig[GeometryConfig]:
        """What a head shares or could share, as an ordinary configuration whose task is the augmentation."""
        return self._with(head, self.geometry)

    def only(self, names: Collection[str]) -> MultiConfig:
        """The configuration with these heads and no other.

        Raises:
            ConfigError: It has no settings for one of them.
        """
        heads = self.heads()
        for name in names:
            if name not in heads:
                raise ConfigError(f"These settings have no head for {name}, only for {', '.join(heads)}.")
        dropped: dict[str, Any] = {name: None for name in heads if name not in names}
        return replace(self, **dropped)

    def changed(
        self,
        shared: Callable[[TrainConfig[GeometryConfig]], TrainConfig[GeometryConfig]],
        own: Callable[[str, HeadConfig[Any]], HeadConfig[Any]],
    ) -> MultiConfig:
        """The configuration with settings changed: those of all heads first, then those of each.

        Args:
            shared: Is given the ``view`` of a head and returns it changed. It must do the same for every head.
            own: Is given a head's name and settings, and returns them changed.

        Raises:
            ConfigError: As ``check``, or what the functions raise.
        """
        config = self
        for name, head in self.heads().items():
            view = shared(self.view(head))
            head = replace(head, name=view.name, method=view.method)
            head = replace(head, split=view.split, baseline=view.baseline, optim=view.optim)
            head = replace(head, task=with_geometry(head.task, view.task))
            config = replace(
                config, geometry=view.task, backbone=view.backbone, loop=view.loop, **{name: own(name, head)}
            )
        config.check()
        return config

    def check(self) -> None:
        """Refuses a head's settings that the shared ones replace, and a run without heads.

        Raises:
            ConfigError: Names the flags.
        """
        if not self.heads():
            raise ConfigError("A joint run needs at least one head. Name tasks and their data: --task depth=FOLDER.")
        for name, head in self.heads().items():
            ruled = with_geometry(head.task, self.geometry)
            for each in dataclasses.fields(ruled):
                if getattr(ruled, each.name) != getattr(head.task, each.name):
                    raise ConfigError(_replaced(name, each.name, getattr(head.task, each.name)))

    def _with(self, head: HeadConfig[Any], task: Any) -> TrainConfig[Any]:
        return TrainConfig(
            name=head.name,
            method=head.method,
            task=task,
            backbone=self.backbone,
            split=head.split,
            baseline=head.baseline,
            optim=head.optim,
            loop=self.loop,
        )


HEAD_NAMES = ("segmentation", "depth", "detection")
"""The fields of ``MultiConfig`` that are heads: the tasks that learn from the same crops."""


def with_geometry(task: TaskConfigT, geometry: GeometryConfig) -> TaskConfigT:
    """A task's settings under a joint run's augmentation; what only the task's own augmentation has is off.

    Raises:
        ConfigError: Detection without ``image_scale``: it has a size of its own to be tested at.
    """
    shared: dict[str, Any] = {
        "crop_size": geometry.crop_size,
        "image_scale": geometry.image_scale,
        "flip": geometry.flip,
        "pad_color": geometry.pad_color,
    }
    match task:
        case SegmentationConfig():
            shared |= {"scale_range": geometry.scale_range, "photometric": geometry.photometric}
            # What looks at one task's labels would make the others' crops depend on it.
            shared |= {"max_class_ratio": 1.0}
        case DepthConfig():
            shared |= {"border": (0, 0, 0, 0), "rotate_share": 0.0, "colour_share": 0.0}
        case DetectionConfig():
            if geometry.image_scale is None:
                raise ConfigError("--image-scale None: detection needs a size. Give its longest and shortest side.")
            shared |= {"scale_range": geometry.scale_range, "jitter": "large-scale"}
    return replace(task, **shared)  # type: ignore[type-var]


def _replaced(head: str, name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if name in {each.name for each in dataclasses.fields(GeometryConfig)}:
        return (
            f"--{head}.{flag} {value}: all heads of a joint run see the same crops. Give it to all: --{flag} without "
            f"'{head}.'."
        )
    return (
        f"--{head}.{flag} {value}: a joint run has one augmentation for all heads, and this is not part of it. "
        "Leave it away."
    )
