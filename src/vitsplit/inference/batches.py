"""Reading and writing beside the network, and images of equal size in one batch.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def in_background(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], *, threads: int, ahead: int
) -> Iterator[ResultT]:
    """Applies a function in threads; results come in order.

    The items are drawn, and the results handed out, in the caller's thread. What the function raises is raised when
    its result is due.

    Args:
        function: Work that does not hold Python's lock for long, such as decoding or compressing an image.
        items: What it is applied to; drawn no further than ``ahead`` items before the results.
        threads: How many work at once; one keeps the order of the work too.
        ahead: Items in work or done whose results were not handed out yet.
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


def batches(
    images: Iterable[tuple[ItemT, Tensor]], limit: Callable[[int, int], int], *, waiting: int
) -> Iterator[list[tuple[ItemT, Tensor]]]:
    """Groups images of equal size.

    Args:
        images: Items with their ``image_CHW``.
        limit: From H and W to the most images of a batch.
        waiting: Images that wait for others of their size; beyond it the size that has waited longest goes as it is.

    Yields:
        Batches, in the order in which they are complete; every image once.
    """
    of_size: dict[tuple[int, int], list[tuple[ItemT, Tensor]]] = {}
    for item, image_CHW in images:
        size = (image_CHW.shape[-2], image_CHW.shape[-1])
        of_size.setdefault(size, []).append((item, image_CHW))
        if len(of_size[size]) >= limit(*size):
            yield of_size.pop(size)
        elif sum(map(len, of_size.values())) > waiting:
            yield of_size.pop(next(iter(of_size)))
    yield from of_size.values()
