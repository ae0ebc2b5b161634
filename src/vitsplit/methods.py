"""From a configuration to what trains: the method's head and the task's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vitsplit.backbone.frozen import Backbone
from vitsplit.baselines.linear_probe import LastLayer
from vitsplit.split.head import SplitHead
from vitsplit.tasks.base import Task
from vitsplit.tasks.model import TaskModel
from vitsplit.tasks.multi.config import MultiConfig
from vitsplit.tasks.multi.model import MultiModel
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.connectors import build_head
from vitsplit.training.config import TrainConfig


def build_model(config: TrainConfig[Any], backbone: Backbone, task: Task) -> TaskModel:
    """The untrained model of a run; its initial weights depend on ``config.loop.seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        match config.method:
            case "vitsplit":
                head = _head(config, backbone)
                return TaskModel(head, task.build_decoder(head.width, backbone.patch_size))
            case "linear-probe":
                return TaskModel(
                    LastLayer(backbone), task.build_decoder(backbone.width, backbone.patch_size, linear=True)
                )


def _head(config: TrainConfig[Any], backbone: Backbone) -> Any:
    """ViT-Split's head; in front of a language model whichever connector was named."""
    if isinstance(config.task, VqaConfig):
        return build_head(config.task, config.split, backbone)
    return SplitHead(backbone, config.split)


def build_multi_model(config: MultiConfig, backbone: Backbone, tasks: Mapping[str, Task]) -> MultiModel:
    """The untrained models of a joint run: each starts with the weights that it would start with alone."""
    return MultiModel({name: build_model(config.own(name), backbone, task) for name, task in tasks.items()})
