"""The queue of the model: the share of each client, the order within one, and calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitsplit.serving.model_thread import Job, ModelThread


class Recorder:
    """In place of a predictor: records the first pixel of every image that is computed."""

    def __init__(self) -> None:
        self.backbone = SimpleNamespace(mean_C11=torch.zeros(3, 1, 1))
        self.computed: list[int] = []
        self.most = 100
        self.at: dict[int, Callable[[], Any]] = {}

    def predict_batch(self, image_BCHW: Tensor, heads: tuple[str, ...]) -> list[Any]:
        if len(image_BCHW) > self.most:
            raise MemoryError
        numbers = image_BCHW[:, 0, 0, 0].tolist()
        self.computed += numbers
        for number in numbers:
            self.at.pop(number, lambda: None)()
        return [None] * len(image_BCHW)


@contextmanager
def waiting(recorder: Recorder, batch_size: int | None = None) -> Iterator[ModelThread]:
    """A thread that begins with what is queued at the end of the block, and has then computed it."""
    thread = ModelThread(recorder, batch_size)  # type: ignore[arg-type]
    begin = threading.Event()
    thread.call(begin.wait)
    yield thread
    begin.set()
    thread.close()


def job(client: str, number: int, side: int = 1024) -> Job:
    return Job(torch.full((3, side, side), number, dtype=torch.uint8), ("head",), client, time.monotonic() + 60)


def test_clients_have_equal_shares_whatever_they_queue() -> None:
    recorder = Recorder()
    with waiting(recorder) as thread:
        for number in range(20):
            thread.submit(job("many", number))
        for number in range(100, 105):
            thread.submit(job("few", number))
    assert len(recorder.computed) == 25
    assert sum(number >= 100 for number in recorder.computed[:10]) == 5
    assert [number for number in recorder.computed if number < 100] == list(range(20))
    assert [number for number in recorder.computed if number >= 100] == list(range(100, 105))


def test_shares_are_of_work_not_of_images() -> None:
    recorder = Recorder()
    with waiting(recorder) as thread:
        for number in range(100, 108):
            thread.submit(job("large", number, 2048))
        for number in range(32):
            thread.submit(job("small", number, 1024))
    # (2048² + 2²¹) / (1024² + 2²¹) = 2 small images in the time of a large one.
    assert sum(number < 100 for number in recorder.computed[:21]) == pytest.approx(21 * 2 / 3, abs=1)


def test_an_idle_client_saves_no_share() -> None:
    recorder = Recorder()
    thread, begin = ModelThread(recorder, None), threading.Event()  # type: ignore[arg-type]
    for number in range(20):
        thread.submit(job("busy", number)).future.result(60)
    thread.call(begin.wait)
    for number in range(20, 30):
        thread.submit(job("busy", number))
    for number in range(100, 110):
        thread.submit(job("idle", number))
    begin.set()
    thread.close()
    assert sum(number >= 100 for number in recorder.computed[20:30]) == pytest.approx(5, abs=1)


def test_batches_have_one_size_and_calls_keep_their_place() -> None:
    recorder = Recorder()
    with waiting(recorder, batch_size=4) as thread:
        for number, side in enumerate((16, 32, 16, 16)):
            thread.submit(job("client", number, side))
        thread.call(lambda: recorder.computed.append(-1))
        thread.submit(job("other", 9, 16))
    assert recorder.computed == [0, 2, 3, 1, -1, 9]


def test_dropped_jobs_cost_nothing() -> None:
    recorder = Recorder()
    with waiting(recorder) as thread:
        dropped = [thread.submit(job("hasty", number)) for number in range(20)]
        for each in dropped:
            thread.drop(each)
        for number in range(20, 24):
            thread.submit(job("patient", number))
        thread.submit(job("hasty", 100))
    assert recorder.computed.index(100) <= 1


def test_a_newcomer_does_not_overtake_those_behind_a_call() -> None:
    recorder = Recorder()
    thread, begin, newcomer = ModelThread(recorder, None), threading.Event(), list[Job]()  # type: ignore[arg-type]
    recorder.at[100] = lambda: newcomer.append(thread.submit(job("new", 200)))
    thread.call(begin.wait)
    for number in range(8):
        thread.submit(job("many", number))
    thread.call(lambda: None)
    last = [thread.submit(job("few", number)) for number in range(100, 104)][-1]
    begin.set()
    last.future.result(60)
    newcomer[0].future.result(60)
    thread.close()
    assert recorder.computed == [*range(8), 100, 101, 102, 103, 200]


def test_a_batch_that_fails_is_computed_one_by_one() -> None:
    recorder = Recorder()
    recorder.most = 1
    with waiting(recorder, batch_size=4) as thread:
        jobs = [thread.submit(job("client", number, 16)) for number in range(4)]
    assert recorder.computed == [0, 1, 2, 3]
    assert all(each.future.result(0) for each in jobs)
    recorder.most = 0
    with waiting(recorder, batch_size=4) as thread:
        jobs = [thread.submit(job("client", number, 16)) for number in range(2)]
    assert all(isinstance(each.future.exception(0), MemoryError) for each in jobs)
