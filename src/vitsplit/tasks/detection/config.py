"""Settings of detection and instance segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitsplit.config import Factor, Share, Side, Size, check_pixels
from vitsplit.errors import ConfigError
from vitsplit.tasks import Score, TaskConfig

LEVELS = 5
"""Of the feature pyramid."""


class DetectionConfig(TaskConfig):
    """Detection and instance segmentation: data, augmentation, Mask R-CNN, evaluation (Section 4.2, Table 5)."""

    name: ClassVar[str] = "detection"
    location: ClassVar[str] = "vitsplit.tasks.detection.task:DetectionTask"
    default_recipe: ClassVar[str | None] = "laptop-detection"
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
    """Mask R-CNN (on) or Faster R-CNN (off); auto: on where every object of the training data has a mask."""
    jitter: Literal["detr", "large-scale", "none"] = "detr"
    """Sizes in training: the release's multi-scale of DETR, large-scale jitter in a fixed square, or the test's."""
    image_scale: Size = (1333, 800)
    """Longest and shortest side that images are resized to fit at test time (keeping their shape)."""
    crop_size: Size = (1024, 1024)
    """Height and width of large-scale jitter's canvas, and the cap of the release's crops."""
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
    """Shortest sides that DETR's multi-scale draws from."""
    scale_range: tuple[Factor, Factor] = (0.1, 2.0)
    """Factors that large-scale jitter draws from."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right, up to the largest of its batch: black, or the mean
    that pixels are normalized with (exactly zero after it), as in the release."""
    pyramid_width: Annotated[int, Field(ge=1, le=4096)] = 256
    """Channels of the feature pyramid."""
    pyramid_norm: Literal["batch", "group"] = "batch"
    """Last norm of the four maps: batch (over all GPUs where they are several) or group (no batch statistics)."""
    anchor_sizes: Annotated[tuple[Side, ...], Field(min_length=LEVELS, max_length=LEVELS)] = (32, 64, 128, 256, 512)
    """Side in pixels of the anchors, one per level of the pyramid."""
    rcnn: Literal["torchvision", "mmdet"] = "torchvision"
    """Details of the detector: torchvision's, or mmdet's as in the release: pooling that is aligned and samples every
    cell, L1 losses of boxes, anchors that are not rounded, masks of 0 and 1 as targets."""
    sampled_proposals: Annotated[int, Field(ge=1, le=10**4)] = 512
    """Proposals of an image that the heads for class, box and mask learn from in a step, a quarter of them objects."""
    score_threshold: Share = 0.05
    """Detections below this score are dropped."""
    nms_threshold: Share = 0.5
    """Of two detections of a class that overlap more than this, the weaker is dropped."""
    max_detections: Annotated[int, Field(ge=1, le=10**4)] = 100
    """The most detections of an image."""
    bad_boxes: Literal["error", "clip"] = "error"
    """Boxes that leave their image by more than a pixel: refuse the data, or clip them (counted and named)."""

    @property
    def tile_size(self) -> tuple[int, int]:
        """``image_scale``, lying, which all images are brought to."""
        return min(self.image_scale), max(self.image_scale)

    def with_crop(self, geometry: Any) -> Self:
        """See ``TaskConfig.with_crop``.

        Raises:
            ConfigError: There is no ``image_scale``: it has a size of its own to be tested at.
        """
        if geometry.image_scale is None:
            raise ConfigError("--image-scale None: detection needs a size. Give its longest and shortest side.")
        return super().with_crop(geometry)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        check_pixels("--image-scale", self.image_scale)
        if self.scale_range[0] > self.scale_range[1]:
            raise ConfigError(f"--scale-range {self.scale_range}: the smaller factor comes first.")
        return self
