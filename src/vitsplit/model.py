"""From a configuration to what trains: the method's head and the task's decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vitsplit.backbone import open_backbone
from vitsplit.backbone.frozen import Backbone
from vitsplit.engine.config import TrainConfig
from vitsplit.methods.adapter_head import AdapterHead
from vitsplit.methods.adaptformer import AdaptFormer
from vitsplit.methods.full_finetune import FullFineTune
from vitsplit.methods.linear_probe import LastLayer
from vitsplit.methods.lora import LowRank
from vitsplit.methods.settings import backbone_settings, check_method, decoder_kind
from vitsplit.methods.split.head import SplitHead
from vitsplit.methods.vpt import DeepPrompts
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.tasks.model import TaskModel
from vitsplit.tasks.multi.config import MultiConfig
from vitsplit.tasks.multi.model import MultiModel
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.connectors import build_head


def build_model(config: TrainConfig[Any], backbone: Backbone, task: Task) -> TaskModel:
    """The untrained model of a run; its initial weights depend on ``config.loop.seed`` alone.

    Raises:
        ConfigError: The method is not for the task or the backbone, or settings contradict it.
    """
    check_method(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        head = _head(config, backbone)
        return TaskModel(head, task.build_decoder(head.width, backbone.patch_size, kind=decoder_kind(config)))


def _head(config: TrainConfig[Any], backbone: Backbone) -> Any:
    """The way from taps to a map, or to the four that UperNet reads."""
    baseline = config.baseline
    drop_path = baseline.drop_path or 0.0
    match config.method:
        case "vitsplit":
            if isinstance(config.task, VqaConfig):  # whichever connector was named
                return build_head(config.task, config.split, backbone)
            return SplitHead(backbone, config.split)
        case "linear-probe" | "frozen-head":
            return LastLayer(backbone)
        case "full-finetune":
            return FullFineTune(backbone, drop_path=drop_path)
        case "upernet":
            return FullFineTune(backbone, num_maps=4, drop_path=drop_path)
        case "lora":
            return LowRank(backbone, baseline, drop_path=drop_path)
        case "vpt":
            return DeepPrompts(backbone, baseline, drop_path=drop_path)
        case "adaptformer":
            return AdaptFormer(backbone, baseline, drop_path=drop_path)
        case "vit-adapter" | "vit-comer" as name:
            pyramid = decoder_kind(config) == "upernet"
            return AdapterHead(name, backbone, pyramid=pyramid, drop_path=baseline.drop_path)


def model_shapes(config: TrainConfig[Any], description: Mapping[str, Any]) -> TaskModel:
    """The model of a bundle on the meta device, without memory for weights and without the language model of one.

    Args:
        config: The bundle's configuration.
        description: What it says of its task.

    Raises:
        ConfigError: Its settings contradict one another.
    """
    backbone = open_backbone(backbone_settings(config), only_shapes=True)
    said = {name: value for name, value in description.items() if name != "language_model"}
    with torch.device("meta"):
        return build_model(config, backbone, bare_task(config, said))


def build_multi_model(config: MultiConfig, backbone: Backbone, tasks: Mapping[str, Task]) -> MultiModel:
    """The untrained models of a joint run: each starts with the weights that it would start with alone."""
    return MultiModel({name: build_model(config.own(name), backbone, task) for name, task in tasks.items()})
