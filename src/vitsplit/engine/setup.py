"""What has to stand before the first step."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.data.read_ahead import resolve_workers
from vitsplit.engine.checkpoint import TrainState, read_state
from vitsplit.engine.config import LoopConfig, TrainConfig
from vitsplit.engine.engine import Engine, build_engine
from vitsplit.engine.feature_cache import FeatureCache, LookUp, bytes_per_image, check_size
from vitsplit.engine.feature_store import FeatureStore
from vitsplit.engine.heads import check_heads
from vitsplit.engine.precision import DTYPES, Resolved, autocast, resolve_precision
from vitsplit.engine.processes import process_state
from vitsplit.engine.progress import ProgressView
from vitsplit.engine.resume import check_same_config, check_same_files, check_same_task, check_same_world
from vitsplit.engine.run_data import RunData
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.engine.sampling import MicroBatches, ReadBatch, SampleStream, read_batches
from vitsplit.engine.saved_config import config_to_dict
from vitsplit.engine.sharding import check_sharding
from vitsplit.engine.signals import StopRequest
from vitsplit.engine.tracking import Metrics, check_trackers
from vitsplit.errors import ConfigError
from vitsplit.model import Model
from vitsplit.registry_package import cache_folder
from vitsplit.types import LayerTaps, TapRequest

logger = logging.getLogger(__name__)

RunBackbone = Callable[[Tensor, TapRequest, Tensor | None], LayerTaps]
"""As ``Backbone.forward``."""


def make_accelerator(config: TrainConfig | None = None) -> Accelerator:
    """Joins the processes of the launch; with a configuration, refuses sharding that cannot work in them.

    Raises:
        ConfigError: The run cannot be sharded so.
    """
    processes = process_state().num_processes
    if config is not None:
        check_sharding(config, processes)
    # Precision is handled by hand: accelerate's own would copy every output to float32.
    return Accelerator(mixed_precision="no")


def resolve_config(config: TrainConfig, accelerator: Accelerator, run: RunFolder, *, resume: bool) -> TrainConfig:
    """The configuration with the precision that ``auto`` comes to: found once in a run, by one process.

    Raises:
        ConfigError: A setting that cannot work.
        RunError: The run to be resumed had other settings.
    """
    check_heads(config)
    check_trackers(config.loop.track)
    precision = config.loop.precision
    if resume:
        precision = check_same_config(config, run)
    choice: list[Resolved] = [resolve_precision(precision, accelerator.device)]
    broadcast_object_list(choice)
    logger.info("precision: %s%s", choice[0], " (auto)" if config.loop.precision == "auto" else "")
    loop = dataclasses.replace(config.loop, precision=choice[0])
    resolved = dataclasses.replace(config, loop=loop)
    check_sharding(resolved, accelerator.num_processes)
    return resolved


def set_up_model(
    accelerator: Accelerator, config: TrainConfig, backbone: Backbone, model: Model
) -> tuple[RunBackbone, Engine]:
    """Moves backbone and model to the device.

    Returns:
        The backbone as steps run it (compiled where that was asked for), and what trains the model. The backbone itself
        stays as it is, for evaluations.

    Raises:
        ConfigError: The model cannot be sharded.
    """
    dtype = compute_dtype(config)
    backbone.to(accelerator.device)
    if dtype != torch.float32:
        backbone.set_precision(dtype)
    if accelerator.distributed_type == DistributedType.MULTI_GPU:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.train()
    run_backbone: RunBackbone = torch.compile(backbone) if config.loop.compile else backbone
    return run_backbone, build_engine(accelerator, config, model, dtype)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """What the forward pass of a resolved configuration computes in."""
    precision = config.loop.precision
    assert precision != "auto", "resolve_config comes first"
    return DTYPES[precision]


def first_state(
    tasks: RunTasks,
    samples: int,
    accelerator: Accelerator,
    backbone: Backbone,
    run: RunFolder,
    checkpoint: Path | None,
    *,
    allow_changed_data: bool = False,
) -> TrainState:
    """The numbers to begin with: a checkpoint's, or those of step 0. Notes the data's files in the run's folder.

    Raises:
        RunError: The checkpoint cannot be read, or is of another task, other data or another backbone.
    """
    files = tasks.files() if accelerator.is_main_process else None
    present = TrainState(
        samples=samples,
        processes=accelerator.num_processes,
        backbone_hash=backbone.info.weights_hash,
        description=tasks.describe(),
    )
    if checkpoint is None:
        check_same_files(files, run, resume=False, allow_changed=allow_changed_data)
        return present
    saved = read_state(checkpoint, tasks.tasks)
    check_same_task(saved, present, run)
    check_same_files(files, run, resume=True, allow_changed=allow_changed_data)
    check_same_world(saved, present, run, allow_changed=allow_changed_data)
    if saved.finished:
        named = tasks.config.named
        best = ", ".join(
            f"best {named(head, standing.score_name)} {standing.best_score:.4g} at step {standing.best_step}"
            for head, standing in saved.standings.items()
        )
        logger.info("already finished at step %d: %s", saved.step, best)
    else:
        logger.info("going on from step %d (%s)", saved.step, checkpoint)
    return saved


def open_features(
    loop: LoopConfig, tasks: RunTasks, data: RunData, backbone: Backbone, request: TapRequest, dtype: torch.dtype
) -> LookUp | None:
    """Where the backbone's features are kept, if they are, after a check that there is room for them.

    Raises:
        ConfigError: The task's images cannot be kept, or their features would be too large.
    """
    if not loop.cache_features:
        return None
    if not tasks.same_size:
        raise ConfigError(
            f"--cache-features keeps features of single images, and {', '.join(tasks.tasks)} pads an image to the "
            "largest of its batch: omit it."
        )
    folder = cache_folder() / "features" if loop.cache_folder is None else Path(loop.cache_folder)
    store = FeatureStore(folder, backbone.info.weights_hash, str(dtype).removeprefix("torch."))
    height, width = tasks.collate([data[0, 0]]).image_BCHW.shape[-2:]
    each = bytes_per_image(backbone, request, (height, width))
    taken = check_size(
        len(data), loop.cache_features, each, limit_gb=loop.cache_limit_gb, present=store.size(), free=store.room()
    )
    logger.info("features are kept in %s: at most %s", store.folder, taken)
    return LookUp(store, request)


def open_batches(
    loop: LoopConfig,
    tasks: RunTasks,
    data: RunData,
    accelerator: Accelerator,
    *,
    start: int,
    look_up: LookUp | None = None,
) -> Iterator[ReadBatch]:
    """This process's micro-batches from a step to the end of the run, with what is kept of their images."""
    lengths = data.lengths()
    keys = MicroBatches(
        SampleStream(len(data), loop.seed, lengths=lengths, batch_size=loop.batch_size, views=loop.cache_features),
        start=start,
        stop=loop.steps,
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    workers = resolve_workers(loop.workers)
    pin = accelerator.device.type == "cuda"
    return read_batches(tasks.collate, data, keys, workers=workers, pin=pin, look_up=look_up)


def begin_records(config: TrainConfig, run: RunFolder, accelerator: Accelerator, *, step: int) -> Metrics:
    """Writes what the folder says about a start of the run, and opens ``metrics.jsonl`` and the trackers."""
    run_id, values = "", config_to_dict(config)
    if accelerator.is_main_process:
        run.write_config(values)
        run_id = run.record_start(accelerator.device, accelerator.num_processes)
    return Metrics(
        run,
        config.loop.track,
        config=config_to_dict(config),
        run_id=run_id,
        step=step,
        main=accelerator.is_main_process,
    )


@dataclasses.dataclass(frozen=True)
class Session:
    """What one start of a run works with.

    Attributes:
        accelerator: Device and processes.
        config: The resolved configuration.
        tasks: What the heads learn.
        backbone: The frozen model; it runs outside the data-parallel wrapping.
        run_backbone: The same as steps run it: compiled where that was asked for. Evaluations never run compiled code,
            which would be compiled anew for every size of image.
        features: Keeps what the backbone computes, where that was asked for.
        engine: Heads and decoders, and what trains them.
        run: The run's folder.
        view: Shows progress.
        stop: Signals that this process received.
    """

    accelerator: Accelerator
    config: TrainConfig
    tasks: RunTasks
    backbone: Backbone
    run_backbone: RunBackbone
    engine: Engine
    run: RunFolder
    view: ProgressView
    stop: StopRequest
    features: FeatureCache | None = None

    def taps(self, read: ReadBatch, request: TapRequest) -> LayerTaps:
        """What the backbone computes of a batch: now, or once for all."""
        image_BCHW, extent_B2 = read.batch.image_BCHW, read.batch.extent_B2
        if self.features is None or read.kept is None:
            return self.run_backbone(image_BCHW, request, extent_B2)
        return self.features.taps(image_BCHW, read.kept, request, extent_B2)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of a forward pass; what is computed outside keeps the dtype of its inputs."""
        return autocast(self.accelerator.device.type, compute_dtype(self.config))


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
