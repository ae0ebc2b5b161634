"""Bundles for the tests of inference: made without training, from random heads on a tiny random backbone."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from vitsplit.backbone import load_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.bundle import save_bundle
from vitsplit.methods.split.config import SplitConfig
from vitsplit.model import build_head
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import LoopConfig, TrainConfig, one_head

BACKBONE = "vit_tiny_patch16_224"
SMALL = "test_vit"
"""Half as many blocks, of a third of the width, where each costs time: in exports."""


def write_segmentation_bundle(
    folder: Path,
    *,
    num_classes: int = 5,
    backbone: str = BACKBONE,
    precision: Any = "fp32",
    seed: int = 0,
    task: dict[str, Any] | None = None,
    **split: Any,
) -> Path:
    """A segmentation bundle in ``folder``, with statistics of its batch norms that are not the initial ones."""
    settings = {"crop_size": (48, 64), "image_scale": (64, 48), "test_mode": "whole"} | (task or {})
    config = _config(SegmentationConfig(**settings), precision, seed, backbone, split)
    description = {"classes": [f"class {k}" for k in range(num_classes)],
                   "colours": [[40 * k % 256, (255 - 40 * k) % 256, 90] for k in range(num_classes)]}  # fmt: skip
    return write_bundle(folder, config, description)


def write_depth_bundle(
    folder: Path, *, backbone: str = BACKBONE, seed: int = 0, task: dict[str, Any] | None = None, **split: Any
) -> Path:
    """A depth bundle in ``folder``."""
    settings = {"crop_size": (48, 64), "image_scale": (64, 48), "test_flip": False} | (task or {})
    return write_bundle(folder, _config(DepthConfig(**settings), "fp32", seed, backbone, split), {})


def write_detection_bundle(
    folder: Path,
    *,
    backbone: str = BACKBONE,
    seed: int = 0,
    task: dict[str, Any] | None = None,
    masks: bool = True,
    **split: Any,
) -> Path:
    """A detection bundle in ``folder`` that finds objects in every image."""
    settings = {"crop_size": (48, 64), "image_scale": (64, 48), "pyramid_width": 16, "score_threshold": 0.0,
                "max_detections": 10, "anchor_sizes": (8, 16, 24, 32, 48)} | (task or {})  # fmt: skip
    description = {"classes": ["ball", "box"], "colours": [[200, 30, 30], [30, 30, 200]], "masks": masks}
    return write_bundle(folder, _config(DetectionConfig(**settings), "fp32", seed, backbone, split), description)


def write_bundle(folder: Path, config: TrainConfig, description: dict[str, Any]) -> Path:
    """An untrained bundle, whose random output differs from pixel to pixel."""
    backbone = _backbone(config.backbone.backbone)
    task = bare_task(config.task, description)
    model = build_head(config, backbone, task)
    generator = torch.Generator().manual_seed(config.loop.seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.02 + 0.001)
    save_bundle(folder, config=config, task=task, backbone=backbone, head=model, metrics={})
    return folder


def _config(task: Any, precision: Any, seed: int, backbone: str, split: dict[str, Any]) -> TrainConfig:
    return one_head(
        task=task,
        backbone=BackboneConfig(backbone=backbone, random_weights=True),
        method=SplitConfig(**({"num_tuned_layers": 2} | split)),
        loop=LoopConfig(precision=precision, seed=seed),
    )


@functools.cache
def _backbone(name: str) -> Backbone:
    return load_backbone(name, random_weights=True)
