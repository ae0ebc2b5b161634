"""Reading ahead in worker processes: training samples, validation samples, questions."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from vitsplit.errors import VitsplitError
from vitsplit.memory import available_cores

KeyT = TypeVar("KeyT")
ItemT = TypeVar("ItemT")


def read_ahead(
    read: Callable[[KeyT], ItemT], keys: Iterable[KeyT], *, workers: int, pin: bool = False
) -> Iterator[ItemT]:
    """Yields ``read(key)`` for every key, in order.

    Args:
        read: Reads an item. With workers, it and the items must be picklable.
        keys: The keys.
        workers: Number of processes, which start at once and end with the iterator; 0: read in this process, on demand.
        pin: Move items to page-locked memory, through their ``pin_memory``.

    Raises:
        VitsplitError: When the iteration reaches an item that could not be read; the same with and without workers.
    """
    loader: DataLoader[Any] = DataLoader(
        _Reader(read),  # type: ignore[arg-type]  # its keys are any objects
        sampler=keys,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_ignore_signals,
        prefetch_factor=4 if workers else None,
    )
    return map(_item_or_raise, iter(loader))


def resolve_workers(workers: int) -> int:
    """Resolves the number of reading processes: -1 is this process's share of the cores, at most 8.

    With one or two cores it is 0, since the model uses them.
    """
    if workers >= 0:
        return workers
    share = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if share <= 2 else min(8, share)


class _Reader:
    """Returns an item, or the error that was raised.

    An error that is raised in a worker would arrive with the worker's traceback as its message.
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


def _unchanged(item: Any) -> Any:
    return item


def _ignore_signals(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but the parent still needs data to finish its
    # step. It ends its workers itself by SIGTERM, repeatedly if they are still reading when it exits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
