"""Work on many files in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vitsplit.errors import DataError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def map_in_processes(
    function: Callable[[ItemT], ResultT],
    items: Sequence[ItemT],
    workers: int,
    *,
    doing: str,
    alone: str,
    chunksize: int = 4,
    initializer: Callable[[], None] | None = None,
) -> Iterator[ResultT]:
    """Applies a function to items, in order, in several processes; with one worker in this process.

    Args:
        function: Importable by name, as are the items: both are sent to other processes.
        items: What it is applied to.
        workers: Number of processes.
        doing: What a process does, for the error: ``reads files``.
        alone: How the caller does without processes, for the error: ``run again with --workers 1``.
        chunksize: Items that are sent to a process at once.
        initializer: Called in every process before its first item.

    Raises:
        DataError: A process ended early: a file that needs more memory than there is, a crash of a library, or a script
            without the usual ``if __name__ == "__main__":``.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Processes are spawned, not forked: the caller may hold threads of torch, which a fork would break.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunksize)
        except BrokenProcessPool as error:
            raise DataError(
                f"A process that {doing} ended early, most likely for lack of memory: {alone}. "
                'A script that uses several processes must do so under `if __name__ == "__main__":`.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
