"""The evaluation loop of all tasks.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from vitsplit.data.read_ahead import read_ahead, resolve_workers
from vitsplit.tasks.base import Evaluation, Forward, Task

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE, PIXELS_AT_ONCE = 8, 1 << 21
"""The most images, and pixels in total, in one batch of an evaluation on a GPU."""


def evaluate(
    task: Task,
    forward: Forward,
    *,
    workers: int = 0,
    images_at_once: int = 1,
    accelerator: Accelerator | None = None,
    on_image: Callable[[], None] | None = None,
) -> Evaluation:
    """Computes a task's metrics on its validation set.

    Args:
        task: The task with its validation data.
        forward: Model and backbone, in eval mode.
        workers: Number of processes that read images ahead; -1: see ``resolve_workers``.
        images_at_once: The largest batch: consecutive images of the same size. It changes the metrics only by rounding.
        accelerator: Its processes share the images, and each returns the same metrics; None: a single process.
        on_image: Called after every image.

    Raises:
        DataError: An image cannot be read, or the validation set has no usable labels.
    """
    data, metric = task.val_data(), task.metric()
    rank, world = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    indices = range(rank, len(data), world)
    samples = read_ahead(data.load, indices, workers=min(resolve_workers(workers), len(indices)))
    for group in _of_one_size(samples, images_at_once):
        image_BCHW = torch.stack([sample.image_CHW for sample in group])
        for prediction, sample in zip(task.val_predictions(forward, image_BCHW, group), group, strict=True):
            metric.update(prediction, sample)
            if on_image is not None:
                on_image()
    if world > 1:
        metric.merge(gather_object([metric.state()]))
    return metric.compute()


def images_at_once(device: torch.device, batch_size: int) -> int:
    """Batch size of an evaluation: at most that of training; 1 on a CPU, where batching is not faster."""
    return min(IMAGES_AT_ONCE, batch_size) if device.type != "cpu" else 1


def _of_one_size(samples: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Groups consecutive samples whose images have the same size, at most ``most`` per group."""
    group: list[Any] = []
    for sample in samples:
        shape = sample.image_CHW.shape
        too_large = (len(group) + 1) * shape[-2:].numel() > PIXELS_AT_ONCE
        if group and (too_large or group[0].image_CHW.shape != shape):
            yield group
            group = []
        group.append(sample)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group
