import os

import pytest

from vitsplit.data.read_ahead import read_ahead, resolve_workers
from vitsplit.errors import DataError


def read(key):
    if key == 3:
        raise DataError("the third cannot be read")
    return os.getpid(), 10 * key


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_in_order_up_to_the_first_unreadable_one(workers):
    items = read_ahead(read, [2, 1, 0, 3, 4], workers=workers)
    first = [next(items) for _ in range(3)]
    assert [value for _, value in first] == [20, 10, 0]
    assert (os.getpid() in {process for process, _ in first}) == (workers == 0)
    with pytest.raises(DataError, match=r"^the third cannot be read$"):
        next(items)
    del items


@pytest.mark.parametrize(("cores", "local_world", "expected"), [(2, 1, 0), (4, 1, 4), (64, 1, 8), (8, 2, 4), (4, 2, 0)])
def test_default_workers_share_the_cores(monkeypatch, cores, local_world, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_world))
    assert resolve_workers(-1) == expected
    assert resolve_workers(3) == 3
