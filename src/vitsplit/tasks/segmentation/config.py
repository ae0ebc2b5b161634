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
    prediction: ClassVar[str] = "vitsplit.tasks.segmentation.prediction:SegmentationPrediction"
    default_recipe: ClassVar[str | None] = "laptop-segmentation"
    pipeline_tag: ClassVar[str | None] = "image-segmentation"
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1, "probe": 1, "upernet": 4}
    scores: ClassVar[Mapping[str, Score]] = {"miou": Score("mIoU", "miou")}
    tiles: ClassVar[Literal["dense", "objects"] | None] = "dense"
    shares_crops: ClassVar[bool] = True
    calibrated: ClassVar[bool] = True
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {
        # Shared crops must not depend on the labels of one task.
        "max_class_ratio": 1.0
    }
    num_classes: ClassVar[int] = 150

    format: Literal["auto", "folder", "ade20k", "cityscapes", "pascal-context"] = "auto"
    """Layout of the data folder; auto: recognized from its folders."""
    crop_size: Size = (512, 512)
    """Height and width of the training crops."""
    image_scale: Size | None = (2048, 512)
    """Longest and shortest side that images are resized to fit (keeping the aspect ratio); None: the original size."""
    scale_range: tuple[Factor, Factor] = (0.5, 2.0)
    """Random factor on `image_scale` in training."""
    max_class_ratio: Share = 0.75
    """Maximum fraction of a training crop covered by one class; crops above it are resampled up to ten times."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of the padding of training images, below and to the right: black, or the normalization mean (zero after
    normalization), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch norm (synchronized over GPUs), or group norm (no batch statistics)."""
    smooth_upsampling: bool = False
    """Filter the output of the decoder's transposed convolutions by 1/4 1/2 1/4, so that they leave no grid in the map.
    The release has no filter."""
    dropout: Share | None = None
    """Dropout of whole channels before the classifier (the release: 0 for ADE20K, 0.1 elsewhere); None: the decoder's
    default, 0, or 0.1 for UperNet."""
    pad_logits: Literal["crop", "stretch"] = "crop"
    """Padding to the patch size: crop it from the logits, or stretch the logits over the image, as in the release."""
    class_weights: (
        LongText | Annotated[dict[Name, Annotated[float, Field(ge=0, le=1e6)]], Field(max_length=LONG_TEXT)]
    ) = "none"
    """`none`, `auto` (inverse square root of the frequency), or pairs such as `car=2,person=3` (others 1)."""
    loss_average: Literal["valid", "all"] = "valid"
    """Average the cross-entropy over (weighted) pixels that are not ignored, or over all pixels, as in the release."""
    dice_weight: Annotated[float, Field(ge=0, le=1e4)] = 0.0
    """Weight of an additional Dice loss."""
    unfamiliarity: bool = False
    """Record statistics of the training images' features, from which predictions have a map of unfamiliar regions."""
    test_mode: Literal["whole", "slide"] = "slide"
    """Evaluate on whole images or on overlapping windows of the crop size."""
    test_stride: Size | None = None
    """Stride of the windows, height and width; None: two thirds of the crop size."""
    test_scales: Annotated[tuple[Annotated[float, Field(ge=0.1, le=8)], ...], Field(min_length=1, max_length=16)] = (
        1.0,
    )
    """Scales whose probabilities are averaged."""
    test_flip: bool = False
    """Average with the prediction on the mirrored image."""

    @property
    def compares_features(self) -> bool:
        """See ``TaskConfig``."""
        return self.unfamiliarity

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        if self.image_scale is not None:
            check_pixels("--image-scale", self.image_scale, max(self.test_scales))
        if self.scale_range[0] > self.scale_range[1]:
            raise ConfigError(f"--scale-range {self.scale_range}: the minimum must come first.")
        return self
