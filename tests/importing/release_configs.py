"""Configurations of the release with all values, and their text as mmcv 1.5 writes it (before yapf wraps lines).

Stated again from ADE20K with ViT-L at 896, NYUv2 with ViT-S, and COCO with ViT-B. mmcv 1.5.0 writes the same syntax
tree for ``pretty_text`` and the same line for ``log_text``.
"""

from typing import Any

COLORS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True}
TRAINING: dict[str, Any] = {
    "optimizer": {
        "type": "AdamW",
        "lr": 0.0002,
        "betas": (0.9, 0.999),
        "paramwise_cfg": {"custom_keys": {"backbone.split_head": {"lr_mult": 0.1}}},
    },
    "optimizer_config": {},
    "lr_config": {"policy": "poly", "min_lr": 0.0, "warmup_ratio": 1e-06, "by_epoch": False},
    "log_config": {"interval": 50, "hooks": [{"type": "TextLoggerHook", "by_epoch": False}]},
    "workflow": [("train", 1)],
    "load_from": None,
    "gpu_ids": range(4),
    "loss_limit": float("inf"),
    "offset": -1.5,
}


def view(size: tuple[int, int], steps: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    """``data`` with a test pipeline."""
    steps = [*steps, {"type": "RandomFlip"}, {"type": "Normalize", **COLORS}, {"type": "Collect", "keys": ["img"]}]
    step = {"type": "MultiScaleFlipAug", "img_scale": size, **settings, "transforms": steps}
    return {"samples_per_gpu": 2, "test": {"type": "Dataset", "pipeline": [{"type": "LoadImageFromFile"}, step]}}


def backbone(layers: list[int], copied: list[int]) -> dict[str, Any]:
    return {"type": "DINOViTSplitFusion", "out_indices": layers, "select_layers": copied, "tuning_type": "frozen"}


RESIZE = [{"type": "Resize", "keep_ratio": True}]
SEGMENTATION = TRAINING | {
    "crop_size": (896, 896),
    "data": view((3584, 896), RESIZE, img_ratios=1.0, flip=False),
    "model": {
        "type": "EncoderDecoder",
        "backbone": backbone([2, 5, 8, 11, 14, 17, 20, 23], [20, 21, 22, 23]),
        "decode_head": {"type": "DconvUpsamplingBNHead", "dropout_ratio": 0, "align_corners": False},
        "test_cfg": {"mode": "slide", "crop_size": (896, 896), "stride": (341, 341)},
    },
}
DEPTH = TRAINING | {
    "data": view((480, 640), [], flip=True, flip_direction="horizontal"),
    "model": {
        "type": "DepthEncoderDecoder",
        "backbone": backbone([2, 5, 8, 11], [9, 10, 11]),
        "decode_head": {"type": "LinearHead", "in_channels": [384], "channels": 64, "max_depth": 10},
        "test_cfg": {"mode": "whole"},
    },
}
DETECTION = TRAINING | {
    "data": view((1333, 800), RESIZE, flip=False),
    "model": {
        "type": "MaskRCNN",
        "backbone": backbone([2, 4, 7, 9, 12], [*range(1, 12)]),
        "neck": {"type": "FPN", "in_channels": [768] * 4, "out_channels": 256, "num_outs": 5},
        "rpn_head": {
            "type": "RPNHead",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": [8],
                "ratios": [0.5, 1.0, 2.0],
                "strides": [4, 8, 16, 32, 64],
            },
            "bbox_coder": {"target_means": [0.0, 0.0, 0.0, 0.0], "target_stds": [1.0, 1.0, 1.0, 1.0]},
        },
        "roi_head": {
            "bbox_head": {"bbox_coder": {"target_means": [0.0, 0.0, 0.0, 0.0], "target_stds": [0.1, 0.1, 0.2, 0.2]}}
        },
        "test_cfg": {
            "rpn": {
                "nms_pre": 1000,
                "max_per_img": 1000,
                "nms": {"type": "nms", "iou_threshold": 0.7},
                "min_bbox_size": 0,
            },
            "rcnn": {
                "score_thr": 0.07,
                "nms": {"type": "nms", "iou_threshold": 0.45},
                "max_per_img": 90,
                "mask_thr_binary": 0.5,
            },
        },
    },
}
RELEASE = {"segmentation": SEGMENTATION, "depth": DEPTH, "detection": DETECTION}


def pretty_text(settings: dict[str, Any]) -> str:
    """Assignments; dictionaries as ``dict(...)``, in braces too if a key is no identifier; so in lists of them."""
    return "\n".join(f"{name} = {_shown(value)}" for name, value in settings.items()) + "\n"


def log_text(settings: dict[str, Any]) -> str:
    """The log of the release's training of segmentation, with ``repr`` of mmcv's ``Config``."""
    lines = ["INFO - Distributed training: True", "2024-10-28 10:15:00,000 - mmseg - INFO - Config:"]
    return "\n".join([*lines, f"Config (path: configs/a.py): {settings!r}", "", "Iter [50/40000] loss: 2.1"]) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        named = all(str(key).isidentifier() for key in value)
        items = ",\n".join(
            f"{key}={_shown(each)}" if named else f"'{key}': {_shown(each)}" for key, each in value.items()
        )
        return f"dict({items})" if named else f"dict({{{items}}})"
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return "[\n" + ",\n".join(map(_shown, value)) + "]"
    return f"'{value}'" if isinstance(value, str) else str(value)
