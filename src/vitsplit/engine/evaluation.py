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
"""The most images, and pixels of them, that go through the model together in an evaluation on a GPU."""


def evaluate(
    task: Task,
    forward: Forward,
    *,
    workers: int = 0,
    images_at_once: int = 1,
    accelerator: Accelerator | None = None,
    on_image: Callable[[], None] | None = None,
) -> Evaluation:
    """The figures of a task's validation set.

    Args:
        task: The task with its validation data.
        forward: Model and backbone, in eval mode.
        workers: How many processes read images ahead; -1: see ``resolve_workers``.
        images_at_once: The most images of one size, in the order of the data, that go through the model together. Every
            number of them gives the same figures up to rounding.
        accelerator: Its processes share the images, and all have the figures in the end; None: this process has all.
        on_image: Called after every image.

    Raises:
        DataError: An image cannot be read, or nothing can be compared.
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
    """How many images an evaluation takes at once: no more than training did, and one on a CPU, which gains nothing."""
    return min(IMAGES_AT_ONCE, batch_size) if device.type != "cpu" else 1


def _of_one_size(samples: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Samples in their order, in groups of neighbors whose images are of one size."""
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
