"""Settings of detection and instance segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitsplit.errors import ConfigError

LEVELS = 5
"""Of the feature pyramid."""


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """Detection and instance segmentation: data, augmentation, Mask R-CNN, evaluation (Section 4.2, Table 5)."""

    format: Literal["auto", "coco", "yolo", "voc"] = "auto"
    """Layout of the data folder; auto: recognised from its files."""
    masks: Literal["auto", "on", "off"] = "auto"
    """Mask R-CNN (on) or Faster R-CNN (off); auto: on where every object of the training data has a mask."""
    jitter: Literal["detr", "large-scale", "none"] = "detr"
    """Sizes in training: the release's multi-scale of DETR, large-scale jitter in a fixed square, or the test's."""
    image_scale: tuple[int, int] = (1333, 800)
    """Longest and shortest side that images are resized to fit at test time (keeping their shape)."""
    crop_size: tuple[int, int] = (1024, 1024)
    """Height and width of large-scale jitter's canvas, and the cap of the release's crops."""
    train_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Shortest sides that DETR's multi-scale draws from."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Factors that large-scale jitter draws from."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right, up to the largest of its batch: black, or the mean
    that pixels are normalized with (exactly zero after it), as in the release."""
    pyramid_width: int = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Literal["batch", "group"] = "batch"
    """Last norm of the four maps: batch (over all GPUs where they are several) or group (no batch statistics)."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of the anchors, one per level of the pyramid."""
    rcnn: Literal["torchvision", "mmdet"] = "torchvision"
    """Details of the detector: torchvision's, or mmdet's as in the release: pooling that is aligned and samples every
    cell, L1 losses of boxes, anchors that are not rounded, masks of 0 and 1 as targets."""
    sampled_proposals: int = 512
    """Proposals of an image that the heads for class, box and mask learn from in a step, a quarter of them objects."""
    score_threshold: float = 0.05
    """Detections below this score are dropped."""
    nms_threshold: float = 0.5
    """Of two detections of a class that overlap more than this, the weaker is dropped."""
    max_detections: int = 100
    """The most detections of an image."""
    bad_boxes: Literal["error", "clip"] = "error"
    """Boxes that leave their image by more than a pixel: refuse the data, or clip them (counted and named)."""


def check_settings(config: DetectionConfig) -> None:
    """Refuses settings that cannot work.

    Raises:
        ConfigError: Names the flag.
    """
    for name in ("image_scale", "crop_size", "train_sides", "anchor_sizes"):
        values = getattr(config, name)
        if not values or min(values) < 1:
            raise ConfigError(f"{_flag(name)} {_said(values)}: at least one is needed, and all at least 1 pixel.")
    if len(config.anchor_sizes) != LEVELS:
        raise ConfigError(
            f"--anchor-sizes {_said(config.anchor_sizes)}: the pyramid has {LEVELS} levels, and each needs one."
        )
    if not 0 < config.scale_range[0] <= config.scale_range[1]:
        raise ConfigError(
            f"--scale-range {_said(config.scale_range)}: the smaller factor comes first, and both are above 0."
        )
    for name in ("flip", "score_threshold", "nms_threshold"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{_flag(name)} {getattr(config, name)}: must lie in 0..1.")
    for name in ("pyramid_width", "sampled_proposals", "max_detections"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{_flag(name)} {getattr(config, name)}: must be at least 1.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _said(values: Sequence[float]) -> str:
    return " ".join(map(str, values))
