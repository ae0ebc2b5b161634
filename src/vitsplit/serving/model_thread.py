"""The thread that owns the model: it computes whatever is queued, in batches of one size and the same heads.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitsplit.inference.batches import batch_limit
from vitsplit.inference.predictor import Predictions, Predictor

PIXELS_PER_PASS = 1 << 21
"""The part of an image's cost that does not depend on its size, in pixels; measured with a small backbone."""

logger = logging.getLogger(__name__)


class TooLateError(Exception):
    """A request's time was over before it was computed."""


@dataclass(frozen=True)
class Computed:
    """Predictions of an image.

    Attributes:
        predictions: The predictions by head.
        queued: Seconds before the model started.
        seconds: Seconds of the model, for the whole batch.
        batch: Number of images of the batch.
    """

    predictions: Predictions
    queued: float
    seconds: float
    batch: int


@dataclass(eq=False)
class Job:
    """An image to predict.

    Attributes:
        image_CHW: The image, uint8.
        heads: The heads to run, in the order of the predictor.
        client: Who asks, such as an address; each client has the same share of the thread.
        deadline: Time of ``time.monotonic`` after which it is not computed.
        future: The result. Cancelling it drops the job unless it is being computed.
        finish: The place in the queue, see ``ModelThread``.
    """

    image_CHW: Tensor
    heads: tuple[str, ...]
    client: str
    deadline: float
    future: Future[Computed] = field(default_factory=Future)
    created: float = field(default_factory=time.monotonic)
    finish: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """Jobs of one key can be one batch."""
        return (self.image_CHW.shape, self.heads)

    @property
    def cost(self) -> int:
        """The work relative to that of other jobs, in pixels."""
        return PIXELS_PER_PASS + self.image_CHW[0].numel()


@dataclass(eq=False)
class _Call:
    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class ModelThread:
    """Computes jobs of one size and the same heads in batches, with the same share of the time for every client.

    Jobs of a client are computed in the order of their arrival, and those of several by self-clocked fair queueing
    (Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM 1994): a job's ``finish`` is
    its cost after the later of its client's last one and the one that is being computed, and the lowest comes first. So
    many or large images of a client take no more than its share from the others, apart from the batch in progress.

    A call, such as one that removes a head, is made after all jobs that were submitted before it, so that none of them
    is broken, and before all later ones.

    Args:
        predictor: The model, which nothing else may use meanwhile.
        batch_size: See ``batch_limit``.
        on_batch: Called in the thread with every computed batch.
    """

    def __init__(
        self, predictor: Predictor, batch_size: int | None, on_batch: Callable[[Computed], None] = lambda batch: None
    ) -> None:
        self._predictor, self._batch_size, self._on_batch = predictor, batch_size, on_batch
        self._device = predictor.backbone.mean_C11.device
        self._waiting: deque[Job | _Call] = deque()
        self._clock = 0
        self._finish: dict[str, int] = {}  # of the last job of each client, if it is later than the clock
        self._changed = threading.Condition()  # its lock can be taken again by the thread that has it
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vitsplit-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> Job:
        """Queues a job."""
        with self._changed:
            job.finish = self._finish[job.client] = self._finish.get(job.client, self._clock) + job.cost
            self._append(job)
        return job

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Queues a function that may change the predictor."""
        call = _Call(function)
        self._append(call)
        return call.future

    def drop(self, job: Job) -> None:
        """Drops a job that nobody waits for any more."""
        if job.future.cancel():
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)
                    if job.client in self._finish:
                        self._finish[job.client] -= job.cost

    def close(self) -> None:
        """Ends the thread after all queued jobs are computed."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _append(self, work: Job | _Call) -> None:
        with self._changed:
            if self._stopping:
                raise RuntimeError("the model thread was closed")
            self._waiting.append(work)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                work = self._take()
            if isinstance(work, _Call):
                _settle(work.future, work.function)
            else:
                self._compute(work)

    def _take(self) -> list[Job] | _Call:
        """The next call; or the job with the lowest finish, and others of its key, of those before the next call."""
        jobs = list(itertools.takewhile(lambda work: isinstance(work, Job), self._waiting))
        if not jobs:
            call = self._waiting.popleft()
            assert isinstance(call, _Call)
            return call
        queued = sorted((job for job in jobs if isinstance(job, Job)), key=lambda job: job.finish)
        first = queued[0]
        limit = batch_limit(self._batch_size, self._device, *first.image_CHW.shape[-2:])
        batch = [job for job in queued if job.key == first.key][:limit]
        for job in batch:
            self._waiting.remove(job)
        self._clock = max(self._clock, first.finish)  # those behind a call may have a lower one
        self._finish = {client: finish for client, finish in self._finish.items() if finish > self._clock}
        return batch

    def _compute(self, batch: list[Job]) -> None:
        now = time.monotonic()
        jobs = [job for job in batch if job.future.set_running_or_notify_cancel()]
        for job in jobs:
            if now > job.deadline:
                job.future.set_exception(TooLateError())
        jobs = [job for job in jobs if not job.future.done()]
        if jobs:
            self._predict(jobs)

    def _predict(self, jobs: list[Job]) -> None:
        now = time.monotonic()
        images = [job.image_CHW for job in jobs]
        try:
            # A single image keeps its memory format, as in `Predictor.predict`: rounding may depend on it.
            image_BCHW = torch.stack(images) if len(images) > 1 else images[0][None]
            found = self._predictor.predict_batch(image_BCHW, jobs[0].heads)
        except BaseException as error:
            if len(jobs) > 1:  # too much memory, or one of the images: each is computed alone
                for job in jobs:
                    self._predict([job])
            else:
                jobs[0].future.set_exception(error)  # raised to who waits
            return
        seconds = time.monotonic() - now
        computed = [
            Computed(predictions, now - job.created, seconds, len(jobs))
            for job, predictions in zip(jobs, found, strict=True)
        ]
        try:
            self._on_batch(computed[0])
        except Exception:
            logger.exception("a batch was not counted")  # those who wait get their result nevertheless
        for job, each in zip(jobs, computed, strict=True):
            job.future.set_result(each)


def _settle(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # raised to those who wait
        future.set_exception(error)
