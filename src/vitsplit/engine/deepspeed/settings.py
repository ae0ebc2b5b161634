"""DeepSpeed's settings: the files of this folder, completed by the run's own settings."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import torch

from vitsplit.engine.config import TrainConfig


def deepspeed_settings(config: TrainConfig, processes: int, dtype: torch.dtype) -> dict[str, Any]:
    """What DeepSpeed is given: ``zero2.json`` or ``zero3.json``, and what depends on the run.

    Args:
        config: The resolved configuration.
        processes: How many there are.
        dtype: What parameters are held in; DeepSpeed keeps float32 masters of those that train.
    """
    file = resources.files("vitsplit.engine.deepspeed") / f"{config.loop.sharding}.json"
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    clip_norms = [optim.clip_norm for optim in config.optims().values() if optim.clip_norm is not None]
    return settings | {
        "train_micro_batch_size_per_gpu": config.loop.batch_size // (processes * config.loop.accumulate),
        "gradient_accumulation_steps": config.loop.accumulate,
        "gradient_clipping": max(clip_norms, default=0.0),
        "bf16": {"enabled": dtype == torch.bfloat16},
    }
