"""Reading in worker processes, ahead of whoever uses what was read: training samples, validation samples, questions."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from vitsplit.errors import VitsplitError

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


def read_ahead(
    read: Callable[[KeyT], ItemT], keys: Iterable[KeyT], *, workers: int, pin: bool = False
) -> Iterator[ItemT]:
    """``read(key)`` for every key, in order.

    Args:
        read: Reads one item; with workers it and the items are sent to and from other processes.
        keys: What to read.
        workers: How many processes read; they start at once and live as long as the iterator. 0: read when asked.
        pin: Put items into page-locked memory, through their ``pin_memory``.

    Raises:
        VitsplitError: On reaching it, what an item could not be read for: the same with workers as without.
    """
    loader: DataLoader[Any] = DataLoader(
        _Reader(read),  # type: ignore[arg-type]  # its keys are any objects
        sampler=keys,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_parent,
        prefetch_factor=4 if workers else None,
    )
    return map(_item_or_raise, iter(loader))


def resolve_workers(workers: int) -> int:
    """How many processes read images: what was asked for; at -1 this process's share of the cores, at most 8.

    With one or two cores there are none: the model itself keeps them busy.
    """
    if workers >= 0:
        return workers
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else (os.cpu_count() or 1)
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if share <= 2 else min(8, share)


class _Reader:
    """A key to its item, or to the error that was raised.

    The error travels as a value: raised in a worker, it would arrive with the worker's traceback as its message.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self.read = read

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.read(key)
        except VitsplitError as error:
            return error


def _item_or_raise(item: Any) -> Any:
    if isinstance(item, VitsplitError):
        raise item
    return item


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent still needs data to finish its step, and it
    # ends its workers itself: by SIGTERM, more than once, where it comes to its own end with them still reading.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
