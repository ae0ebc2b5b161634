"""Background threads for reading and writing, and batches of images of equal size.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

GPU_BATCH = 8
GPU_BATCH_PIXELS = 8 << 20
"""Default limits of a batch on a GPU: eight images of at most 1024 x 1024 pixels."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_background(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, threads: int, ahead: int
) -> Iterator[ResultT]:
    """Applies a function in threads, and yields its results in order.

    ``items`` is iterated in the caller's thread. Exceptions of the function are raised in place of its results.

    Args:
        function: Function that releases the GIL, such as decoding or compressing an image.
        items: Its arguments.
        threads: Number of threads; with one, calls are in order too.
        ahead: Maximum number of items that were taken and whose results were not yielded yet.
    """
    waiting: deque[Future[ResultT]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                while len(waiting) > ahead or (waiting and waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batch_limit(batch_size: int | None, device: torch.device, height: int, width: int) -> int:
    """Maximum number of images of one size in a batch.

    Args:
        batch_size: The setting; None: 1 on a CPU, where more are no faster, up to 8 on a GPU.
        device: The device.
        height: Height of the images in pixels.
        width: Width of the images in pixels.
    """
    if batch_size is not None:
        return batch_size
    if device.type == "cpu":
        return 1
    return max(1, min(GPU_BATCH, GPU_BATCH_PIXELS // (height * width)))


def batches(
    images: Iterable[tuple[ItemT, Tensor]], limit: Callable[[int, int], int], *, waiting: int
) -> Iterator[list[tuple[ItemT, Tensor]]]:
    """Groups images of equal size.

    Args:
        images: Items with their ``image_CHW``.
        limit: Function from H and W to the maximum batch size.
        waiting: Maximum number of images in incomplete batches; beyond it, the oldest incomplete batch is yielded.

    Yields:
        Batches; each image once.
    """
    by_size: dict[tuple[int, int], list[tuple[ItemT, Tensor]]] = {}
    for item, image_CHW in images:
        size = (image_CHW.shape[-2], image_CHW.shape[-1])
        by_size.setdefault(size, []).append((item, image_CHW))
        if len(by_size[size]) >= limit(*size):
            yield by_size.pop(size)
        elif sum(map(len, by_size.values())) > waiting:
            yield by_size.pop(next(iter(by_size)))
    yield from by_size.values()
