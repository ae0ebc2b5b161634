"""What has to stand before the first step."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import nn

from vitsplit.backbone.frozen import Backbone
from vitsplit.errors import ConfigError
from vitsplit.tasks.base import Task
from vitsplit.tasks.model import TaskModel
from vitsplit.training.checkpoint import Trained
from vitsplit.training.config import LoopConfig, TrainConfig
from vitsplit.training.ema import WeightAverage
from vitsplit.training.optim import build_optimizer
from vitsplit.training.precision import DTYPES, Resolved, resolve_precision
from vitsplit.training.processes import process_state
from vitsplit.training.progress import ProgressView
from vitsplit.training.resume import check_same_config
from vitsplit.training.run_folder import RunFolder
from vitsplit.training.signals import StopRequest

logger = logging.getLogger(__name__)


def make_accelerator() -> Accelerator:
    """Joins the processes of the launch."""
    process_state()
    # Precision is handled by hand: accelerate's own would copy every output to float32.
    return Accelerator(mixed_precision="no")


def resolve_config(
    config: TrainConfig[Any], accelerator: Accelerator, run: RunFolder, *, resume: bool
) -> TrainConfig[Any]:
    """The configuration with the precision that ``auto`` comes to: found once in a run, by one process.

    Raises:
        ConfigError: A setting that cannot work.
        RunError: The run to be resumed had other settings.
    """
    check_loop(config.loop)
    precision = config.loop.precision
    if resume:
        check_same_config(config, run)
        precision = run.read_config()["loop"]["precision"]
    choice: list[Resolved] = [resolve_precision(precision, accelerator.device)]
    broadcast_object_list(choice)
    logger.info("precision: %s%s", choice[0], " (auto)" if config.loop.precision == "auto" else "")
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, precision=choice[0]))


def check_loop(loop: LoopConfig) -> None:
    """Refuses a loop that cannot run.

    Raises:
        ConfigError: A count is too small.
    """
    for name, least in {"steps": 1, "log_every": 1, "eval_every": 0, "checkpoint_every": 0, "workers": -1}.items():
        if getattr(loop, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(loop, name)}.")


def set_up_model(
    accelerator: Accelerator, config: TrainConfig[Any], backbone: Backbone, model: TaskModel
) -> tuple[nn.Module, Trained]:
    """Moves backbone and model to the device; returns the model as data-parallel training wraps it, and what trains."""
    dtype = compute_dtype(config)
    backbone.to(accelerator.device)
    if dtype != torch.float32:
        backbone.set_precision(dtype)
    if accelerator.distributed_type == DistributedType.MULTI_GPU:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.loop.compile:
        # In place, so that parameters keep the names that bundles and checkpoints know them by.
        backbone.compile()
        model.compile()
    wrapped = accelerator.prepare_model(model.train())
    trained = Trained(
        model=model,
        optimizer=build_optimizer(model, config.optim),
        scaler=torch.amp.GradScaler(accelerator.device.type, enabled=dtype == torch.float16),
        average=None if config.loop.ema is None else WeightAverage(model, config.loop.ema),
    )
    return wrapped, trained


def compute_dtype(config: TrainConfig[Any]) -> torch.dtype:
    """What the forward pass of a resolved configuration computes in."""
    precision = config.loop.precision
    assert precision != "auto", "resolve_config comes first"
    return DTYPES[precision]


@dataclasses.dataclass(frozen=True)
class Session:
    """What one start of a run works with.

    Attributes:
        accelerator: Device and processes.
        config: The resolved configuration.
        task: What is learnt.
        backbone: The frozen model; it runs outside the data-parallel wrapping.
        wrapped: Head and decoder as data-parallel training wraps them.
        trained: Head and decoder themselves, with optimiser, scaler and average.
        run: The run's folder.
        view: Shows progress.
        stop: Signals that this process received.
    """

    accelerator: Accelerator
    config: TrainConfig[Any]
    task: Task
    backbone: Backbone
    wrapped: nn.Module
    trained: Trained
    run: RunFolder
    view: ProgressView
    stop: StopRequest

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass; what is computed outside keeps the dtype of its inputs."""
        dtype = compute_dtype(self.config)
        return torch.autocast(self.accelerator.device.type, dtype, enabled=dtype != torch.float32)


@dataclasses.dataclass(frozen=True)
class Cadence:
    """Steps between two evaluations and between two checkpoints."""

    evaluate: int
    checkpoint: int

    @classmethod
    def of(cls, loop: LoopConfig) -> Cadence:
        """As the configuration says; 0 there means: see ``LoopConfig``."""
        return cls(
            evaluate=loop.eval_every or max(200, math.ceil(loop.steps / 10)),
            checkpoint=loop.checkpoint_every or min(1000, math.ceil(loop.steps / 10)),
        )
