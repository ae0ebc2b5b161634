"""The settings of a bundle that predicts as the release does, from tensors and the configuration stored with them.

Shapes: D width, K_t copied blocks, K_p prior layers, L layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitsplit.data.classes import ClassList
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.importing.keys import require
from vitsplit.importing.training_config import TrainingConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks import TaskConfig
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import CANDIDATES, PROPOSALS
from vitsplit.tasks.detection.strides import ASPECT_RATIOS
from vitsplit.tasks.segmentation.config import SegmentationConfig

CLASSIFIERS = {
    "segmentation": ("decoder.classify.bias", 0),
    "detection": ("decoder.roi_heads.box_predictor.cls_score.bias", 1),
}
"""Task to the bias of the class scores, and how many of them are of no class."""
MASK_HEAD = "decoder.roi_heads.mask_head."
_FIXED = {
    "model.decode_head.align_corners": None,
    "model.decode_head.classify": None,
    "model.decode_head.scale_up": None,
    "model.rpn_head.anchor_generator.ratios": [*ASPECT_RATIOS],
    "model.neck.add_extra_convs": None,
    "model.rpn_head.bbox_coder.target_stds": [1.0, 1.0, 1.0, 1.0],
    "model.roi_head.bbox_head.bbox_coder.target_stds": [0.1, 0.1, 0.2, 0.2],
    "model.test_cfg.rpn.nms_pre": CANDIDATES["testing"],
    "model.test_cfg.rpn.max_per_img": PROPOSALS["testing"],
    "model.test_cfg.rpn.nms.iou_threshold": 0.7,
    "model.test_cfg.rcnn.nms.type": "nms",
}
"""Settings that change predictions, by place, with the only value that bundles have; None: not set."""
_BLOCK = re.compile(r"head\.task_head\.blocks\.(\d+)\.")
_REDUCE = "head.prior_head.block.reduce.weight"
_GATE = "head.gate.scores_LJ"
_LATERAL = "decoder.pyramid.fpn.inner_blocks.0.0.weight"


def split_settings(
    found: Mapping[str, Tensor],
    num_layers: int,
    config: TrainingConfig,
    prior_layers: Sequence[int] | None,
    source: str,
) -> SplitConfig:
    """The settings of ViT-Split: K_t and K_p from the tensors, layers from the configuration or as given.

    Args:
        found: Tensors by the names of a bundle.
        num_layers: L.
        config: The configuration in the checkpoint.
        prior_layers: Indices of the prior layers (0-based) if the configuration has none.
        source: The file, for messages.

    Raises:
        ConfigError: The prior layers are unknown, or their number is not K_p; or the copied blocks are not the last.
        WeightsError: The tensor that has K_p is missing.
    """
    num_tuned = len({match[1] for name in found if (match := _BLOCK.match(name))})
    _check_copied(config, num_layers, num_tuned, source)
    if _GATE in found:
        require(found, {_GATE: 2}, source)
        if prior_layers is not None:
            raise ConfigError(f"--prior-layers: the gate of {source} chooses the layers. Omit it.")
        return SplitConfig(num_tuned_layers=num_tuned, num_prior_layers=found[_GATE].shape[1], selection="gate")
    require(found, {_REDUCE: 4}, source)
    width, channels = max(1, found[_REDUCE].shape[0]), found[_REDUCE].shape[1]
    recorded = config.whole_numbers("model.backbone.out_indices")
    # DINOv2's code returns layers in the order of the blocks, whatever the order of the indices.
    layers = _sorted(recorded if prior_layers is None else prior_layers)
    if layers is None:
        raise ConfigError(
            f"{source}: which layers the prior head reads is not recorded (no out_indices in meta.config). Give the "
            "configuration that it was trained with, with --config, or only the "
            f"{channels // width} indices with --prior-layers, such as --prior-layers 2 5 8 11."
        )
    if recorded is not None and _sorted(recorded) != layers:
        raise ConfigError(
            f"--prior-layers {' '.join(map(str, layers))}: {source} was trained with out_indices {[*recorded]}. "
            "Omit it."
        )
    if len(layers) * width != channels:
        raise ConfigError(
            f"{source}: its prior head reads {channels // width} layers, but {len(layers)} are given ({[*layers]}). "
            "Correct --prior-layers."
        )
    return SplitConfig(
        num_tuned_layers=num_tuned, num_prior_layers=len(layers), selection="explicit", prior_layers=layers
    )


def _sorted(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(sorted(layers))


def _check_copied(config: TrainingConfig, num_layers: int, num_tuned: int, source: str) -> None:
    copied = config.whole_numbers("model.backbone.select_layers")
    if copied is not None and copied != tuple(range(num_layers - num_tuned, num_layers)):
        raise ConfigError(
            f"{source}: its task head copies the blocks {[*copied]}. Only copies of the last blocks can be imported."
        )


def task_settings(task: str, config: TrainingConfig, found: Mapping[str, Tensor], source: str) -> TaskConfig:
    """The settings of a task: those of the release, and sizes of test images from the configuration.

    Raises:
        ConfigError: The configuration has a setting that bundles do not have.
        WeightsError: The tensor that has the width of the pyramid is missing.
    """
    for place, only in _FIXED.items():
        if (value := config.get(place)) and value != only:
            raise ConfigError(f"{source}: trained with {place}={shown(value)}, for which bundles have no setting.")
    match task:
        case "segmentation":
            return _segmentation(config)
        case "depth":
            return _depth(config)
        case _:
            require(found, {_LATERAL: 4}, source)
            return _detection(config, found)


def _segmentation(config: TrainingConfig) -> SegmentationConfig:
    window = config.whole_numbers("model.test_cfg.crop_size") or config.whole_numbers("crop_size")
    recorded = {
        "test_mode": config.get("model.test_cfg.mode"),
        "crop_size": window,
        "test_stride": config.whole_numbers("model.test_cfg.stride"),
        "dropout": config.get("model.decode_head.dropout_ratio", 0.1),
    }
    return SegmentationConfig(
        pad_logits="stretch", pad_color="mean", loss_average="all", **_given(recorded), **config.test_view()
    )


def _depth(config: TrainingConfig) -> DepthConfig:
    view = {"test_flip": True} | config.test_view()
    view.pop("test_scales", None)
    return DepthConfig(
        pad_output="stretch",
        color_values="0-255",
        min_depth=config.get("model.decode_head.min_depth", 1e-3),
        max_depth=config.get("model.decode_head.max_depth"),
        **view,
    )


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _detection(config: TrainingConfig, found: Mapping[str, Tensor]) -> DetectionConfig:
    anchors, limits = "model.rpn_head.anchor_generator", "model.test_cfg.rcnn"
    strides, scales = config.whole_numbers(f"{anchors}.strides"), config.whole_numbers(f"{anchors}.scales")
    recorded = {
        "image_scale": config.test_view().get("image_scale"),
        "anchor_sizes": tuple(scales[0] * stride for stride in strides) if strides and scales else None,
        "score_threshold": config.get(f"{limits}.score_thr"),
        "nms_threshold": config.get(f"{limits}.nms.iou_threshold"),
        "max_detections": config.get(f"{limits}.max_per_img"),
    }
    return DetectionConfig(
        rcnn="mmdet",
        pad_color="mean",
        masks="on" if any(name.startswith(MASK_HEAD) for name in found) else "off",
        pyramid_width=len(found[_LATERAL]),
        **_given(recorded),
    )


def recorded_classes(meta: Mapping[str, Any], count: int, source: str) -> ClassList:
    """Names and colors of the classes that a checkpoint records.

    Raises:
        ConfigError: There are no names, or not as many as the decoder has classes.
        DataError: A name is invalid.
    """
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if not isinstance(names, list | tuple) or len(names) != count or not all(isinstance(each, str) for each in names):
        raise ConfigError(
            f"{source}: its decoder has {count} classes, but CLASSES in its meta is {shown(names)}. Give the names "
            "with --classes classes.json."
        )
    colors = [each for each in palette if _is_color(each)] if isinstance(palette, list | tuple) else []
    return ClassList(tuple(names), tuple(map(tuple, colors)) if len(colors) == count else ())


def _is_color(value: Any) -> bool:
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(type(part) is int and 0 <= part <= 255 for part in value)
