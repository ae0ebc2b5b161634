"""The settings of a task with which a bundle predicts as the release does, from the configuration of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitsplit.config import ConfigT
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.importing.keys import require
from vitsplit.importing.preparation import PIPELINE, test_view
from vitsplit.importing.settings import MASK_HEAD
from vitsplit.importing.training_config import TrainingConfig, whole_numbers
from vitsplit.tasks import TaskConfig
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import CANDIDATES, PROPOSALS
from vitsplit.tasks.detection.pyramid import STRIDES
from vitsplit.tasks.detection.strides import ASPECT_RATIOS
from vitsplit.tasks.segmentation.config import SegmentationConfig

_STRIDES = tuple(int(16 * stride) for stride in STRIDES)
_ANCHORS = "model.rpn_head.anchor_generator"
_FIXED = {
    "test_cfg": None,
    "model.decode_head.align_corners": None,
    "model.decode_head.classify": None,
    "model.decode_head.scale_up": None,
    "model.neck.add_extra_convs": None,
    f"{_ANCHORS}.ratios": [*ASPECT_RATIOS],
    f"{_ANCHORS}.strides": [*_STRIDES],
    f"{_ANCHORS}.octave_base_scale": None,
    f"{_ANCHORS}.scales_per_octave": None,
    f"{_ANCHORS}.base_sizes": None,
    f"{_ANCHORS}.centers": None,
    f"{_ANCHORS}.center_offset": 0,
    "model.rpn_head.bbox_coder.target_means": [0, 0, 0, 0],
    "model.rpn_head.bbox_coder.target_stds": [1, 1, 1, 1],
    "model.roi_head.bbox_head.bbox_coder.target_means": [0, 0, 0, 0],
    "model.roi_head.bbox_head.bbox_coder.target_stds": [0.1, 0.1, 0.2, 0.2],
    "model.test_cfg.rpn.nms_pre": CANDIDATES["testing"],
    "model.test_cfg.rpn.max_per_img": PROPOSALS["testing"],
    "model.test_cfg.rpn.min_bbox_size": 0,
    "model.test_cfg.rpn.nms.type": "nms",
    "model.test_cfg.rpn.nms.iou_threshold": 0.7,
    "model.test_cfg.rcnn.nms.type": "nms",
    "model.test_cfg.rcnn.nms.class_agnostic": None,
    "model.test_cfg.rcnn.mask_thr_binary": 0.5,
}
"""Settings that change predictions, by place, with the only value that bundles have; None: not set, or False."""
_LATERAL = "decoder.pyramid.fpn.inner_blocks.0.0.weight"


def task_settings(task: str, config: TrainingConfig, found: Mapping[str, Tensor], source: str) -> TaskConfig:
    """The settings of a task: those of the release, and those of predictions from the configuration.

    Args:
        task: Name of the task.
        config: The configuration of the training.
        found: Tensors by the names of a bundle.
        source: The checkpoint, for messages.

    Raises:
        ConfigError: The configuration has a setting that bundles do not have.
        WeightsError: The tensor that has the width of the pyramid is missing.
    """
    for place, only in _FIXED.items():
        value = config.get(place, only)
        value = [*value] if isinstance(value, tuple) else value
        if value != only and not (only is None and value is False):
            raise config.invalid(place, value, "not set" if only is None else shown(only))
    view = test_view(config, task)
    match task:
        case "segmentation":
            return _segmentation(config, view)
        case "depth":
            return _depth(config, view)
        case _:
            require(found, {_LATERAL: 4}, source)
            return _detection(config, view, found)


def _segmentation(config: TrainingConfig, view: Mapping[str, Any]) -> SegmentationConfig:
    window = config.whole_numbers("model.test_cfg.crop_size")
    recorded = {
        "test_mode": config.get("model.test_cfg.mode"),
        "crop_size": config.whole_numbers("crop_size") if window is None else window,
        "test_stride": config.whole_numbers("model.test_cfg.stride"),
        "dropout": config.get("model.decode_head.dropout_ratio", 0.1),
    }
    return _checked(
        SegmentationConfig,
        config,
        pad_logits="stretch",
        pad_color="mean",
        loss_average="all",
        **_given(recorded),
        **view,
    )


def _depth(config: TrainingConfig, view: Mapping[str, Any]) -> DepthConfig:
    if (mode := config.get("model.test_cfg.mode", "whole")) != "whole":
        raise config.invalid("model.test_cfg.mode", mode, "'whole'")
    return _checked(
        DepthConfig,
        config,
        pad_output="stretch",
        color_values="0-255",
        min_depth=config.get("model.decode_head.min_depth", 1e-3),
        max_depth=config.get("model.decode_head.max_depth"),
        **{"test_flip": True} | _without(view, config, img_ratios=("test_scales", (1.0,))),
    )


def _detection(config: TrainingConfig, view: Mapping[str, Any], found: Mapping[str, Tensor]) -> DetectionConfig:
    limits = "model.test_cfg.rcnn"
    recorded = {
        "anchor_sizes": _anchor_sizes(config),
        "score_threshold": config.get(f"{limits}.score_thr"),
        "nms_threshold": config.get(f"{limits}.nms.iou_threshold"),
        "max_detections": config.get(f"{limits}.max_per_img"),
    }
    return _checked(
        DetectionConfig,
        config,
        rcnn="mmdet",
        pad_color="mean",
        masks="on" if any(name.startswith(MASK_HEAD) for name in found) else "off",
        pyramid_width=len(found[_LATERAL]),
        **_given(recorded),
        **_without(view, config, img_ratios=("test_scales", (1.0,)), flip=("test_flip", False)),
    )


def _checked(kind: type[ConfigT], config: TrainingConfig, **settings: Any) -> ConfigT:
    try:
        return kind(**settings)
    except ConfigError as error:
        raise ConfigError(f"{config.source}: trained with a setting that bundles do not have. {error}") from error


def _anchor_sizes(config: TrainingConfig) -> tuple[int, ...] | None:
    """Sides of the anchors in pixels: strides times one scale."""
    place = f"{_ANCHORS}.scales"
    if (scales := config.get(place)) is None:
        return None
    if not isinstance(scales, list | tuple) or len(scales) != 1 or type(scales[0]) not in (int, float):
        raise config.invalid(place, scales, "a list of one number")
    if (sides := whole_numbers([scales[0] * stride for stride in _STRIDES])) is None:
        raise config.invalid(place, scales, "anchors of whole pixels")
    return sides


def _without(view: Mapping[str, Any], config: TrainingConfig, **fixed: tuple[str, Any]) -> dict[str, Any]:
    """The settings of test images without those that the task does not have: their name, and their only value."""
    for place, (name, only) in fixed.items():
        if view.get(name, only) != only:
            raise config.invalid(f"{PIPELINE}: {place}", view[name], shown(only))
    names = [name for name, _ in fixed.values()]
    return {name: value for name, value in view.items() if name not in names}


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
