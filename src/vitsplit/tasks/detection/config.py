"""Settings of detection and instance segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitsplit.config import Factor, Share, Side, Size, check_pixels
from vitsplit.errors import ConfigError
from vitsplit.tasks import Score, TaskConfig

LEVELS = 5
"""Number of levels of the feature pyramid."""


class DetectionConfig(TaskConfig):
    """Detection and instance segmentation: data, augmentation, Mask R-CNN, evaluation (Section 4.2, Table 5)."""

    name: ClassVar[str] = "detection"
    location: ClassVar[str] = "vitsplit.tasks.detection.task:DetectionTask"
    prediction: ClassVar[str] = "vitsplit.tasks.detection.prediction:DetectionPrediction"
    default_recipe: ClassVar[str | None] = "laptop-detection"
    pipeline_tag: ClassVar[str | None] = "object-detection"
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1, "probe": 1}
    scores: ClassVar[Mapping[str, Score]] = {
        "mask_ap": Score("mask AP", "mask_ap"),
        "box_ap": Score("box AP", "box_ap"),
    }
    tiles: ClassVar[Literal["dense", "objects"] | None] = "objects"
    shares_crops: ClassVar[bool] = True
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {
        "jitter": "large-scale",
    }
    most_tuned: ClassVar[float] = 1.0
    num_classes: ClassVar[int] = 80

    format: Literal["auto", "coco", "yolo", "voc"] = "auto"
    """Layout of the data folder; auto: recognized from its files."""
    masks: Literal["auto", "on", "off"] = "auto"
    """Mask R-CNN (on) or Faster R-CNN (off); auto: on if every object of the training data has a mask."""
    jitter: Literal["detr", "large-scale", "none"] = "detr"
    """Scale augmentation: DETR's multi-scale, as in the release, or large-scale jitter; none: sizes as at test time."""
    image_scale: Size = (1333, 800)
    """Longest and shortest side that images are resized to fit at test time (keeping the aspect ratio)."""
    crop_size: Size = (1024, 1024)
    """Height and width of the canvas of large-scale jitter, and maximum size of DETR's crops."""
    train_sides: Annotated[tuple[Side, ...], Field(min_length=1, max_length=64)] = (
        480,
        512,
        544,
        576,
        608,
        640,
        672,
        704,
        736,
        768,
        800,
    )
    """Shortest sides for DETR's multi-scale, sampled randomly."""
    scale_range: tuple[Factor, Factor] = (0.1, 2.0)
    """Range of the random factors of large-scale jitter."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of the padding of training images to the largest of their batch, below and to the right: black, or the
    normalization mean (zero after normalization), as in the release."""
    pyramid_width: Annotated[int, Field(ge=1, le=4096)] = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Literal["batch", "group"] = "batch"
    """Last norm of the four maps: batch norm (synchronized over GPUs), or group norm (no batch statistics)."""
    anchor_sizes: Annotated[tuple[Side, ...], Field(min_length=LEVELS, max_length=LEVELS)] = (32, 64, 128, 256, 512)
    """Side of the anchors in pixels, one per level of the pyramid."""
    rcnn: Literal["torchvision", "mmdet"] = "torchvision"
    """Detector conventions: torchvision's, or mmdet's as in the release (aligned RoI pooling with adaptive sampling, L1
    box losses, unrounded anchors, binary mask targets)."""
    sampled_proposals: Annotated[int, Field(ge=1, le=10**4)] = 512
    """Proposals sampled per image to train the class, box and mask heads, a quarter of them positive."""
    score_threshold: Share = 0.05
    """Detections below this score are discarded."""
    nms_threshold: Share = 0.5
    """IoU threshold of non-maximum suppression within a class."""
    max_detections: Annotated[int, Field(ge=1, le=10**4)] = 100
    """Maximum number of detections per image."""
    bad_boxes: Literal["error", "clip"] = "error"
    """Boxes that exceed their image by more than a pixel: raise an error, or clip them with a warning."""

    @property
    def tile_size(self) -> tuple[int, int]:
        """``image_scale`` in landscape orientation."""
        return min(self.image_scale), max(self.image_scale)

    def with_crop(self, geometry: Any) -> Self:
        """See ``TaskConfig.with_crop``.

        Raises:
            ConfigError: There is no ``image_scale``, which detection requires at test time.
        """
        if geometry.image_scale is None:
            raise ConfigError("--image-scale None: detection requires a size. Give its longest and shortest side.")
        return super().with_crop(geometry)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        check_pixels("--image-scale", self.image_scale)
        if self.scale_range[0] > self.scale_range[1]:
            raise ConfigError(f"--scale-range {self.scale_range}: the minimum must come first.")
        return self
