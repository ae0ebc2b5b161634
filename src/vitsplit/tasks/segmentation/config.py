"""Settings of semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitsplit.config import LONG_TEXT, Factor, LongText, Name, Share, Size, check_pixels
from vitsplit.errors import ConfigError
from vitsplit.tasks import Score, TaskConfig


class SegmentationConfig(TaskConfig):
    """Semantic segmentation: data, augmentation, decoder, loss, evaluation (Section 4.1)."""

    name: ClassVar[str] = "segmentation"
    location: ClassVar[str] = "vitsplit.tasks.segmentation.task:SegmentationTask"
    default_recipe: ClassVar[str | None] = "laptop-segmentation"
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1, "probe": 1, "upernet": 4}
    scores: ClassVar[Mapping[str, Score]] = {"miou": Score("mIoU", "miou")}
    tiles: ClassVar[Literal["dense", "objects"] | None] = "dense"
    shares_crops: ClassVar[bool] = True
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {
        # What looks at one task's labels would make the others' crops depend on it.
        "max_class_ratio": 1.0
    }
    num_classes: ClassVar[int] = 150

    format: Literal["auto", "folder", "ade20k", "cityscapes", "pascal-context"] = "auto"
    """Layout of the data folder; auto: recognized from its folders."""
    crop_size: Size = (512, 512)
    """Height and width of the training crops."""
    image_scale: Size | None = (2048, 512)
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    scale_range: tuple[Factor, Factor] = (0.5, 2.0)
    """Random factor on `image_scale` in training."""
    max_class_ratio: Share = 0.75
    """A crop is drawn again (up to ten times) while one class covers more than this share of it."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch (over all GPUs where they are several) or group (no batch statistics)."""
    dropout: Share | None = None
    """Dropout of whole channels before the classifier (the release: 0 for ADE20K, 0.1 elsewhere); None: the decoder's
    own, 0, and 0.1 of UperNet."""
    pad_logits: Literal["crop", "stretch"] = "crop"
    """The padding to the patch size: cropped from the logits, or stretched over the image as in the release."""
    class_weights: (
        LongText | Annotated[dict[Name, Annotated[float, Field(ge=0, le=1e6)]], Field(max_length=LONG_TEXT)]
    ) = "none"
    """`none`, `auto` (inverse square root of the frequency), or pairs such as `car=2,person=3` (others 1)."""
    loss_average: Literal["valid", "all"] = "valid"
    """The cross-entropy is a mean over the (weighted) pixels that are not ignored, or over all, as in the release."""
    dice_weight: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    """Weight of a Dice loss beside the cross-entropy."""
    test_mode: Literal["whole", "slide"] = "slide"
    """Evaluate on whole images or on overlapping windows of the crop size."""
    test_stride: Size | None = None
    """Step of the windows, height and width; None: two thirds of the crop."""
    test_scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=8)], ...], Field(min_length=1, max_length=16)] = (
        1.0,
    )
    """Scales whose probabilities are averaged."""
    test_flip: bool = False
    """Average with the mirrored image."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        if self.image_scale is not None:
            check_pixels("--image-scale", self.image_scale, max(self.test_scales))
        if self.scale_range[0] > self.scale_range[1]:
            raise ConfigError(f"--scale-range {self.scale_range}: the smaller factor comes first.")
        return self
