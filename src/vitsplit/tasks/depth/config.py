"""Settings of monocular depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vitsplit.config import Former, Margin, Share, Size, check_pixels
from vitsplit.errors import ConfigError
from vitsplit.tasks import Score, TaskConfig

EvalCrop = Literal["none", "nyu-eigen", "kb", "garg", "kitti-eigen"]


class DepthConfig(TaskConfig):
    """Monocular depth: data, augmentation, decoder, loss, evaluation (Section E.6, Table 11). Depths are meters."""

    name: ClassVar[str] = "depth"
    location: ClassVar[str] = "vitsplit.tasks.depth.task:DepthTask"
    default_recipe: ClassVar[str | None] = "laptop-depth"
    decoders: ClassVar[Mapping[str, int]] = {"linear": 1, "probe": 1}
    scores: ClassVar[Mapping[str, Score]] = {"neg_rmse": Score("RMSE", "rmse", sign=-1, scale=1.0, unit="m")}
    tiles: ClassVar[Literal["dense", "objects"] | None] = "dense"
    shares_crops: ClassVar[bool] = True
    without_own_augmentation: ClassVar[Mapping[str, Any]] = {
        "border": (0, 0, 0, 0),
        "rotate_share": 0.0,
        "color_share": 0.0,
    }

    format: Literal["auto", "folder", "nyuv2", "kitti"] = "auto"
    """Layout of the data folder; auto: recognized from its folders."""
    depth_scale: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Meters of one unit of the depth files (0.001: millimeters); None: what the data's depth.json says."""
    min_depth: Annotated[float, Field(gt=0, le=1e6)] = 1e-3
    """Least depth in meters: what the decoder adds to its output. Labels up to it are invalid."""
    max_depth: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Largest depth in meters: predictions are clamped to it, labels from it on are invalid; None: unbounded."""
    start_depth: Annotated[float, Field(gt=0, le=1e9)] = 2.5
    """Depth in meters that an untrained decoder answers on average (the bias of its last layer)."""
    crop_size: Size = (416, 544)
    """Height and width of the training crops."""
    image_scale: Size | None = None
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    border: tuple[Margin, Margin, Margin, Margin] = (0, 0, 0, 0)
    """Pixels cut off at top, left, bottom, right before anything else in training (NYUv2's white frame: 45 43 8 32)."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 2.5
    """Largest turn in training, in degrees either way."""
    rotate_share: Share = 0.5
    """Probability of a turn in training."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    color_share: Annotated[Share, Former("colour_share")] = 0.5
    """Probability of changed gamma, brightness and color in training."""
    color_values: Literal["0-1", "0-255"] = "0-1"
    """Range of the values that these act on: in 0-255, as in the release, a gamma of 0.9 to 1.1 also darkens or
    brightens the image, by up to 1.7 times."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch (over all GPUs where they are several) or group (no batch statistics)."""
    loss_weight: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """Weight of the scale-invariant log loss."""
    variance_focus: Share = 0.15
    """Share of the squared mean in the scale-invariant log loss: 0 is blind to scale, 1 is the log RMSE."""
    eval_crop: EvalCrop = "none"
    """Pixels that count in evaluation: all, or those of a public crop (Eigen for NYU, and three for KITTI)."""
    test_flip: bool = True
    """Average with the mirrored image, as the paper."""
    median_scaling: bool = False
    """Scale every prediction by the ratio of medians before it is measured; figures say so."""
    pad_output: Literal["crop", "stretch"] = "crop"
    """The padding to the patch size: cropped from the output, or stretched over the image as in the release."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        if self.image_scale is not None:
            check_pixels("--image-scale", self.image_scale)
        if self.max_depth is not None and not self.max_depth > self.min_depth:
            raise ConfigError(f"--max-depth {self.max_depth}: must be above --min-depth {self.min_depth}.")
        if not self.start_depth > self.min_depth:
            raise ConfigError(f"--start-depth {self.start_depth}: must be above --min-depth {self.min_depth}.")
        return self
