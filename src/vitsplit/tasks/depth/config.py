"""Settings of monocular depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from vitsplit.ranges import MAX_SIDE, Range
from vitsplit.tasks import Score, TaskConfig

EvalCrop = Literal["none", "nyu-eigen", "kb", "garg", "kitti-eigen"]


@dataclass(frozen=True, kw_only=True)
class DepthConfig(TaskConfig):
    """Monocular depth: data, augmentation, decoder, loss, evaluation (Section E.6, Table 11). Depths are metres."""

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
        "colour_share": 0.0,
    }

    format: Literal["auto", "folder", "nyuv2", "kitti"] = "auto"
    """Layout of the data folder; auto: recognised from its folders."""
    depth_scale: Annotated[float | None, Range(0, 1e6, above=True)] = None
    """Metres of one unit of the depth files (0.001: millimetres); None: what the data's depth.json says."""
    min_depth: Annotated[float, Range(0, 1e6, above=True)] = 1e-3
    """Least depth in metres: what the decoder adds to its output. Labels up to it are invalid."""
    max_depth: Annotated[float | None, Range(0, 1e9, above=True)] = None
    """Largest depth in metres: predictions are clamped to it, labels from it on are invalid; None: unbounded."""
    start_depth: Annotated[float, Range(0, 1e9, above=True)] = 2.5
    """Depth in metres that an untrained decoder answers on average (the bias of its last layer)."""
    crop_size: Annotated[tuple[int, int], Range(1, MAX_SIDE)] = (416, 544)
    """Height and width of the training crops."""
    image_scale: Annotated[tuple[int, int] | None, Range(1, MAX_SIDE)] = None
    """Longest and shortest side that images are resized to fit (keeping their shape); None: their own size."""
    border: Annotated[tuple[int, int, int, int], Range(0, MAX_SIDE)] = (0, 0, 0, 0)
    """Pixels cut off at top, left, bottom, right before anything else in training (NYUv2's white frame: 45 43 8 32)."""
    rotate: Annotated[float, Range(0, 180)] = 2.5
    """Largest turn in training, in degrees either way."""
    rotate_share: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a turn in training."""
    flip: Annotated[float, Range(0, 1)] = 0.5
    """Probability of a horizontal flip in training."""
    colour_share: Annotated[float, Range(0, 1)] = 0.5
    """Probability of changed gamma, brightness and colour in training."""
    color_values: Literal["0-1", "0-255"] = "0-1"
    """Range of the values that these act on: in 0-255, as in the release, a gamma of 0.9 to 1.1 also darkens or
    brightens the image, by up to 1.7 times."""
    pad_color: Literal["black", "mean"] = "black"
    """Color of what a training image lacks below and at the right: black, or the mean that pixels are normalized with
    (exactly zero after it), as in the release."""
    decoder_norm: Literal["batch", "group"] = "batch"
    """Last norm of the decoder: batch (over all GPUs where they are several) or group (no batch statistics)."""
    loss_weight: Annotated[float, Range(0, 1e6)] = 10.0
    """Weight of the scale-invariant log loss."""
    variance_focus: Annotated[float, Range(0, 1)] = 0.15
    """Share of the squared mean in the scale-invariant log loss: 0 is blind to scale, 1 is the log RMSE."""
    eval_crop: EvalCrop = "none"
    """Pixels that count in evaluation: all, or those of a public crop (Eigen for NYU, and three for KITTI)."""
    test_flip: bool = True
    """Average with the mirrored image, as the paper."""
    median_scaling: bool = False
    """Scale every prediction by the ratio of medians before it is measured; figures say so."""
    pad_output: Literal["crop", "stretch"] = "crop"
    """The padding to the patch size: cropped from the output, or stretched over the image as in the release."""
