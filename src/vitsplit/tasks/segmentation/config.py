"""Settings of semantic segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Semantic segmentation: data, augmentation, decoder, loss, evaluation (Section 4.1)."""

    format: Literal["auto", "folder", "ade20k", "cityscapes", "pascal-context"] = "auto"
    """Layout of the data folder; auto: recognised from its folders."""
    crop_size: tuple[int, int] = (512, 512)
    """Height and width of the training crops."""
    image_scale: tuple[int, int] | None = (2048, 512)
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Random factor on `image_scale` in training."""
    max_class_ratio: float = 0.75
    """A crop is drawn again (up to ten times) while one class covers more than this share of it."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    photometric: bool = True
    """Random brightness, contrast, saturation and hue in training."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch (over all GPUs where they are several) or group (no batch statistics)."""
    dropout: float | None = None
    """Dropout of whole channels before the classifier (the release: 0 for ADE20K, 0.1 elsewhere); None: the decoder's
    own, 0, and 0.1 of UperNet."""
    pad_logits: Literal["crop", "stretch"] = "crop"
    """The padding to the patch size: cropped from the logits, or stretched over the image as in the release."""
    class_weights: str | dict[str, float] = "none"
    """`none`, `auto` (inverse square root of the frequency), or pairs such as `car=2,person=3` (others 1)."""
    loss_average: Literal["valid", "all"] = "valid"
    """The cross-entropy is a mean over the (weighted) pixels that are not ignored, or over all, as in the release."""
    dice_weight: float = 0.0
    """Weight of a Dice loss beside the cross-entropy."""
    test_mode: Literal["whole", "slide"] = "slide"
    """Evaluate on whole images or on overlapping windows of the crop size."""
    test_stride: tuple[int, int] | None = None
    """Step of the windows, height and width; None: two thirds of the crop."""
    test_scales: tuple[float, ...] = (1.0,)
    """Scales whose probabilities are averaged."""
    test_flip: bool = False
    """Average with the mirrored image."""
