"""What a bundle is saved from."""

from __future__ import annotations

from dataclasses import dataclass

from vitsplit.backbone.backbone import Backbone
from vitsplit.model import Head
from vitsplit.tasks.base import Task
from vitsplit.train_config import TrainConfig


@dataclass(frozen=True)
class Built:
    """A head with the weights of a checkpoint, and its settings, task and backbone; arguments of ``save_bundle``."""

    config: TrainConfig
    task: Task
    backbone: Backbone
    head: Head
