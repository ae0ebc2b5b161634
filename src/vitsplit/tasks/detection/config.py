"""Settings of detection and instance segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    pyramid_width: int = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Literal["batch", "group"] = "batch"
    """Last norm of the four maps: batch (over all GPUs where they are several) or group (no batch statistics)."""
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Side in pixels of the anchors, one per level of the pyramid."""
    score_threshold: float = 0.05
    """Detections below this score are dropped."""
    nms_threshold: float = 0.5
    """Of two detections of a class that overlap more than this, the weaker is dropped."""
    max_detections: int = 100
    """The most detections of an image."""
    bad_boxes: Literal["error", "clip"] = "error"
    """Boxes that leave their image by more than a pixel: refuse the data, or clip them (counted and named)."""
