import threading
import time
from collections.abc import Iterator

import pytest
import torch

from vitsplit.inference.batches import batches, in_background


def test_results_are_in_order_and_items_are_consumed_lazily() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            drawn.append(number)
            yield number

    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    results = in_background(slow_first, items(), threads=3, ahead=4)
    for number, result in enumerate(results):
        assert result == number * number
        assert len(drawn) <= number + 1 + 4
    assert drawn == list(range(20))


def test_work_runs_in_background() -> None:
    here = threading.get_ident()
    assert here not in set(in_background(lambda _: threading.get_ident(), range(3), threads=2, ahead=2))
    # Two at once: each waits for the other.
    barrier = threading.Barrier(2, timeout=5)
    assert len(list(in_background(lambda _: barrier.wait(), range(4), threads=2, ahead=4))) == 4


def test_errors_are_raised_in_order() -> None:
    results = in_background(lambda number: 1 // (number - 2), range(10), threads=2, ahead=3)
    assert [next(results), next(results)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(("limit", "waiting"), [(1, 0), (2, 3), (4, 8), (3, 0), (8, 100)])
def test_batches_have_one_size_and_every_image_once(limit: int, waiting: int) -> None:
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (5, 5), (6, 4), (4, 6), (6, 4), (6, 4), (4, 6), (4, 6)]
    images = [(index, torch.zeros(3, *size)) for index, size in enumerate(sizes)]
    groups = list(batches(images, lambda height, width: limit, waiting=waiting))
    assert sorted(index for group in groups for index, _ in group) == list(range(len(sizes)))
    for group in groups:
        assert 1 <= len(group) <= limit and len({image.shape for _, image in group}) == 1
        assert [index for index, _ in group] == sorted(index for index, _ in group)
    if limit == 2:  # counted by hand: pairs as they fill up, and (5, 5) goes when four wait or at the end
        assert [[index for index, _ in group] for group in groups] == [[0, 2], [1, 5], [3, 6], [7, 8], [9, 10], [4]]


def test_the_limit_depends_on_the_size() -> None:
    images = [(index, torch.zeros(3, 10, 10 if index % 2 else 100)) for index in range(8)]
    groups = list(batches(images, lambda height, width: max(1, 400 // (height * width)), waiting=50))
    assert [len(group) for group in groups if group[0][1].shape[-1] == 100] == [1] * 4
    assert [len(group) for group in groups if group[0][1].shape[-1] == 10] == [4]


def test_the_number_of_waiting_images_is_limited() -> None:
    held: list[int] = []

    def images() -> Iterator[tuple[int, torch.Tensor]]:
        for index in range(30):
            held.append(index)
            yield index, torch.zeros(3, 1 + index, 1)

    for group in batches(images(), lambda height, width: 8, waiting=5):
        assert len(held) <= 6
        for index, _ in group:
            held.remove(index)
