"""Predictors of random heads on tiny random backbones of every kind, in memory."""

from __future__ import annotations

from typing import Any

import torch
from tiny_backbones import tiny_backbone

from vitsplit.bundle import Card
from vitsplit.inference.predictor import LoadedHead, Predictor
from vitsplit.methods.split.config import SplitConfig
from vitsplit.model import build_head
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import one_head

CLASSES = {"classes": ["floor", "wall", "ball"], "colours": [[9, 9, 9], [200, 30, 30], [30, 30, 200]]}
DESCRIPTIONS: dict[str, Any] = {
    "segmentation": CLASSES,
    "depth": {},
    "detection": {**CLASSES, "category_ids": [1, 2, 3], "masks": True},
}
DETECTION = {"pyramid_width": 16, "score_threshold": 0.3, "max_detections": 10, "anchor_sizes": (8, 16, 24, 32, 48)}
BACKBONE = {"timm_name": "tiny", "licence": "MIT", "source": "random", "weights_hash": "0" * 64}
METHOD = SplitConfig(num_tuned_layers=2, num_prior_layers=2, first_prior_layer=0)
SMALLEST = SplitConfig(num_tuned_layers=1, num_prior_layers=1, first_prior_layer=0)
"""For exports, which take seconds per block."""


def tiny_predictor(
    kind: str = "dinov2-small",
    tasks: tuple[str, ...] = ("segmentation", "depth"),
    method: Any = METHOD,
    task_settings: dict[str, Any] | None = None,
    **overrides: Any,
) -> Predictor:
    """Heads of tasks, with random numbers in every parameter and statistic, on a backbone of two or more blocks."""
    backbone = tiny_backbone(kind, **({"embed_dim": 64, "num_heads": 2} | overrides))
    predictor = Predictor(backbone, "fp32")
    for seed, name in enumerate(tasks):
        settings = {"crop_size": (50, 66), "image_scale": (66, 50)} | (task_settings or {})
        config: Any = {
            "segmentation": lambda s: SegmentationConfig(test_mode="whole", **s),
            "depth": lambda s: DepthConfig(test_flip=False, **s),
            "detection": lambda s: DetectionConfig(**(DETECTION | s)),
        }[name](settings)
        task = bare_task(config, DESCRIPTIONS[name])
        train_config = one_head(task=config, method=method)
        head = build_head(train_config, backbone, task)
        randomize(head, seed)
        card = Card(name, train_config, task.describe(), BACKBONE | {"name": kind}, (), {}, "1.0")
        predictor.register(name, LoadedHead(card, task, backbone, head))
    return predictor


@torch.no_grad()
def randomize(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            scale = 0.3 if ".offset." in name else 0.05
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)
