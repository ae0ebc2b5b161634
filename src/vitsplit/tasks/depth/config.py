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
    """Monocular depth: data, augmentation, decoder, loss, evaluation (Section E.6, Table 11). Depths are in meters."""

    name: ClassVar[str] = "depth"
    location: ClassVar[str] = "vitsplit.tasks.depth.task:DepthTask"
    prediction: ClassVar[str] = "vitsplit.tasks.depth.prediction:DepthPrediction"
    default_recipe: ClassVar[str | None] = "laptop-depth"
    pipeline_tag: ClassVar[str | None] = "depth-estimation"
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
    """Meters per unit of the depth files (0.001: millimeters); None: as given in depth.json of the data."""
    min_depth: Annotated[float, Field(gt=0, le=1e6)] = 1e-3
    """Minimum depth in meters, added to the decoder's output. Labels not above it are invalid."""
    max_depth: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Maximum depth in meters: predictions are clamped to it, labels not below it are invalid; None: unbounded."""
    start_depth: Annotated[float, Field(gt=0, le=1e9)] | None = 2.5
    """Mean depth in meters predicted by an untrained decoder (sets the bias of its last layer, which a short run hardly
    moves); None: the geometric mean of the training depths."""
    crop_size: Size = (416, 544)
    """Height and width of the training crops."""
    image_scale: Size | None = None
    """Longest and shortest side that images are resized to fit (keeping the aspect ratio); None: the original size."""
    border: tuple[Margin, Margin, Margin, Margin] = (0, 0, 0, 0)
    """Pixels cropped at top, left, bottom, right before augmentation in training (NYUv2's white frame: 45 43 8 32)."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 2.5
    """Maximum rotation in training, in degrees in both directions."""
    rotate_share: Share = 0.5
    """Probability of a rotation in training."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    color_share: Annotated[Share, Former("colour_share")] = 0.5
    """Probability of gamma, brightness and color jitter in training."""
    color_values: Literal["0-1", "0-255"] = "0-1"
    """Pixel range for the color jitter: with 0-255, as in the release, a gamma of 0.9 to 1.1 also darkens or brightens
    the image by a factor of up to 1.7."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of the padding of training images, below and to the right: black, or the normalization mean (zero after
    normalization), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch norm (synchronized over GPUs), or group norm (no batch statistics)."""
    smooth_upsampling: bool = False
    """Filter the output of the decoder's transposed convolutions by 1/4 1/2 1/4: removes the grid that they leave in
    depth maps after a short run. The release has no filter."""
    loss_weight: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """Weight of the scale-invariant log loss."""
    variance_focus: Share = 0.15
    """Weight of the squared mean in the scale-invariant log loss: 0 ignores the scale, 1 is the log RMSE."""
    eval_crop: EvalCrop = "none"
    """Pixels used in evaluation: all, or those of a standard crop (Eigen for NYU, and three for KITTI)."""
    test_flip: bool = True
    """Average with the prediction on the mirrored image, as in the paper."""
    median_scaling: bool = False
    """Scale every prediction by the ratio of the medians of ground truth and prediction before evaluation; the report
    states it."""
    pad_output: Literal["crop", "stretch"] = "crop"
    """Padding to the patch size: crop it from the output, or stretch the output over the image, as in the release."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pixels("--crop-size", self.crop_size)
        if self.image_scale is not None:
            check_pixels("--image-scale", self.image_scale)
        if self.max_depth is not None and not self.max_depth > self.min_depth:
            raise ConfigError(f"--max-depth {self.max_depth}: must be above --min-depth {self.min_depth}.")
        if self.start_depth is not None and not self.start_depth > self.min_depth:
            raise ConfigError(f"--start-depth {self.start_depth}: must be above --min-depth {self.min_depth}.")
        return self
