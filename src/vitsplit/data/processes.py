"""Processing many files in several processes."""

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
    """Maps a function over items in several processes, keeping the order; with one worker in this process.

    Args:
        function: A function that can be pickled, as can the items.
        items: Its arguments.
        workers: Number of processes.
        doing: Description of the work, for the error: ``reads files``.
        alone: How to run without processes, for the error: ``run again with --workers 1``.
        chunksize: Number of items per task.
        initializer: Called once in every process.

    Raises:
        DataError: A process terminated: out of memory, a crash of a library, or a script without ``if __name__ ==
            "__main__":``.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the caller may have started threads of torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=initializer) as pool:
        try:
            yield from pool.map(function, items, chunksize=chunksize)
        except BrokenProcessPool as error:
            raise DataError(
                f"A process that {doing} terminated, probably out of memory: {alone}. "
                'A script that uses several processes must do so under `if __name__ == "__main__":`.'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
