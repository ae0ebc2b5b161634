"""A request's way from its body to predictions: limits, decoding, the model, and the client that may leave meanwhile.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request

from vitsplit.errors import DataError, VitsplitError
from vitsplit.inference.predictor import Predictions, Predictor
from vitsplit.memory import is_out_of_memory
from vitsplit.serving.errors import ClientGoneError, HttpError, invalid, refused, unavailable
from vitsplit.serving.heads import ServedHead, num_blocks, passes_json
from vitsplit.serving.images import decode
from vitsplit.serving.limits import Limits
from vitsplit.serving.metrics import Metrics
from vitsplit.serving.model_thread import Computed, Job, ModelThread, TooLateError
from vitsplit.serving.slots import Slots

BODIES = 2
"""Bodies that are read at the same time, as a multiple of the accepted requests."""
POOL_THREADS = 2
"""Threads that decode images and encode responses, beside the one of the model."""
DISCARDED = 4
"""A body that is too large is read up to this multiple of its limit, and dropped: the client gets a response."""
ResultT = TypeVar("ResultT")


@dataclass
class Result:
    """Predictions of a request.

    Attributes:
        size: Height and width of the image.
        predictions: The predictions by head.
        timing: Milliseconds of each stage so far.
        passes: See ``passes_json``.
    """

    size: tuple[int, int]
    predictions: Predictions
    timing: dict[str, float]
    passes: list[dict[str, Any]]

    def arrays(self, *, prefix: bool = True) -> dict[str, NDArray[Any]]:
        """The arrays of all predictions, named ``HEAD.NAME``, or ``NAME`` without the prefix."""
        return {
            f"{head}.{name}" if prefix else name: array
            for head, one in self.predictions.items()
            for name, array in one.arrays().items()
        }


class Service:
    """Heads behind one pass, with a thread for the model and a pool for decoding and encoding.

    Args:
        predictor: The heads.
        ids: Identification of each head, see ``Source.ids``.
        limits: Limits of requests.
        batch_size: See ``vitsplit.inference.batches.batch_limit``.
        roots: Folders of the server, which errors omit.

    Attributes:
        heads: The heads that new requests may ask for.
        roots: See above.
        stopping: Whether the server stops, and responds to the last requests.
    """

    def __init__(
        self,
        predictor: Predictor,
        ids: Mapping[str, str],
        limits: Limits | None = None,
        *,
        batch_size: int | None = None,
        roots: Iterable[Path] = (),
    ) -> None:
        self.predictor, self.limits, self.roots = predictor, limits or Limits(), set(roots)
        self.heads = {name: ServedHead.of(name, head, ids[name]) for name, head in predictor.items()}
        self.stopping = False
        self.metrics = Metrics()
        self.slots = Slots(self.limits.queue, on_change=self.metrics.accepted.set)
        self._bodies = Slots(BODIES * self.limits.queue)
        self.blocks = num_blocks(predictor)
        self.model = ModelThread(predictor, batch_size, self._count_batch)
        self._held: Counter[str] = Counter()
        self._released = asyncio.Event()
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="vitsplit-pool")

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and the thread of the model runs."""
        return not self.stopping and self.model.alive

    def close(self) -> None:
        """Ends the threads, after the accepted requests."""
        self.model.close()
        self._pool.shutdown()

    def choose(self, names: str | None) -> dict[str, ServedHead]:
        """The heads that a request asks for, in the order of the predictor; see ``hold``.

        Args:
            names: Their names, separated by commas; None: all that answer without a question.

        Raises:
            HttpError: There is no head of such a name, or it needs a question.
        """
        dense = {name: head for name, head in self.heads.items() if not head.task.answers_questions}
        if names is None:
            if not dense:
                raise invalid("invalid_parameter", "all bundles need a question", "Use /v1/ask.")
            return dense
        wanted = {self.head(name).name for name in names.split(",")}
        for name in wanted:
            if name not in dense:
                raise invalid("invalid_parameter", f"the bundle {name} needs a question", "Use /v1/ask.")
        return {name: head for name, head in dense.items() if name in wanted}

    @contextmanager
    def hold(self, heads: Mapping[str, ServedHead]) -> Iterator[None]:
        """Keeps heads in the predictor within the block, also if they are removed meanwhile."""
        self._held.update(heads.keys())
        try:
            yield
        finally:
            self._held.subtract(heads.keys())
            self._released.set()

    async def remove(self, name: str) -> None:
        """Removes a head at once for new requests, and from the predictor after those that were accepted."""
        del self.heads[name]
        while self._held[name]:
            self._released.clear()
            await self._released.wait()
        await asyncio.wrap_future(self.model.call(lambda: self.predictor.drop(name)))

    def head(self, name: str) -> ServedHead:
        """A head by its name; raises ``HttpError`` if there is none."""
        if name not in self.heads:
            raise HttpError(
                HTTPStatus.NOT_FOUND,
                "unknown_bundle",
                f"there is no bundle {name[:100]!r}",
                f"Bundles: {', '.join(self.heads) or 'none'}.",
            )
        return self.heads[name]

    async def read_body(self, request: Request, limit: int | None = None) -> bytes:
        """The body of a request, whose time begins when it is complete.

        Args:
            request: The request.
            limit: Size limit in bytes; None: ``Limits.max_body``.

        Raises:
            HttpError: It is too large, too slow, or compressed, or the server is busy.
            ClientGoneError: The client has disconnected.
        """
        client = client_of(request)
        self.slots.check("requests", client)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_type", "compressed bodies are not read")
        body, size = bytearray(), 0
        limit = self.limits.max_body if limit is None else min(limit, self.limits.max_body)
        try:
            with self._bodies.one("bodies", client):
                async with asyncio.timeout(self.limits.body_seconds):
                    async for chunk in request.stream():
                        size += len(chunk)
                        if size <= limit:
                            body += chunk
                        elif size > DISCARDED * limit:
                            break
        except TimeoutError:
            seconds = self.limits.body_seconds
            raise HttpError(
                HTTPStatus.REQUEST_TIMEOUT, "slow_body", f"the body took more than {seconds:g} seconds"
            ) from None
        except ClientDisconnect:
            raise ClientGoneError from None
        if size > limit:
            raise HttpError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                f"the body has more than {limit} bytes",
                "Scale the image down, or compress it." if limit == self.limits.max_body else "",
            )
        request.state.deadline = time.monotonic() + self.limits.request_seconds
        return bytes(body)

    async def in_pool(
        self, stage: str, function: Callable[[], ResultT], request: Request, timing: dict[str, float]
    ) -> ResultT:
        """Runs a stage of a request, such as decoding, in the pool, and records its time.

        Raises:
            HttpError: The time is over.
            ClientGoneError: The client has disconnected.
        """

        def run() -> tuple[ResultT, float]:
            begun = time.perf_counter()
            return function(), time.perf_counter() - begun

        await self._check_waiting(request)
        found, seconds = await self.wait_for(self._pool.submit(run), request)
        self.observe(stage, seconds, timing)
        return found

    async def decode(self, request: Request, content: bytes, timing: dict[str, float]) -> NDArray[np.uint8]:
        """Decodes an image: ``image_HWC``, RGB.

        Raises:
            HttpError: It is not an image of an accepted format, damaged, or too large; or the time is over.
            ClientGoneError: The client has disconnected.
        """
        if not content:
            raise invalid("invalid_image", "the body is empty", "Send the image file as the body.")
        return await self.in_pool("decode", lambda: decode(content, self.limits), request, timing)

    async def predict(
        self,
        request: Request,
        image_HWC: NDArray[np.uint8],
        heads: Mapping[str, ServedHead],
        timing: dict[str, float],
    ) -> Result:
        """Predictions of a decoded image by heads that are held.

        Raises:
            HttpError: The time is over, or a head does not take such an image.
            ClientGoneError: The client has disconnected.
        """
        image_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)
        await self._check_waiting(request)
        job = self.model.submit(Job(image_CHW, tuple(heads), client_of(request), request.state.deadline))
        try:
            computed: Computed = await self.wait_for(job.future, request)
        except TooLateError:
            raise too_late(self.limits) from None
        except DataError as error:
            raise self.refused("invalid_image", error) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise unavailable("out_of_memory", "there is not enough memory for this image at present") from None
            raise
        finally:
            self.model.drop(job)
        self.observe("queue", computed.queued, timing)
        self.observe("model", computed.seconds, timing)
        passes = passes_json(computed.predictions.passes, heads, self.blocks)
        return Result((image_HWC.shape[0], image_HWC.shape[1]), computed.predictions, timing, passes)

    async def _check_waiting(self, request: Request) -> None:
        """Raises as ``wait_for`` before work is submitted, which may begin at once."""
        if await request.is_disconnected():
            raise ClientGoneError
        if time.monotonic() > request.state.deadline:
            raise too_late(self.limits)

    async def wait_for(self, future: Future[ResultT], request: Request) -> ResultT:
        """Waits for a result while the client does, until the deadline of the request.

        Raises:
            HttpError: The time is over.
            ClientGoneError: The client has disconnected.
        """
        wrapped = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            either: set[asyncio.Future[Any]] = {wrapped, gone}
            remaining = max(0.0, request.state.deadline - time.monotonic())
            await asyncio.wait(either, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
            if wrapped.done():
                return wrapped.result()
            raise ClientGoneError if gone.done() else too_late(self.limits)
        finally:
            gone.cancel()
            wrapped.cancel()

    def refused(self, code: str, error: VitsplitError) -> HttpError:
        """An error of vitsplit as one of the request, without paths of the server."""
        return refused(code, error, self.roots)

    def observe(self, stage: str, seconds: float, timing: dict[str, float]) -> None:
        """Records the time of a stage, in the metrics and in milliseconds."""
        self.metrics.stages.labels(stage).observe(seconds)
        timing[f"{stage}_ms"] = round(seconds * 1000, 3)

    def _count_batch(self, computed: Computed) -> None:
        self.metrics.batches.observe(computed.batch)
        self.metrics.add_passes(computed.predictions.passes)


def client_of(request: Request) -> str:
    """Who asks: the address of the client."""
    return request.client.host if request.client else ""


def too_late(limits: Limits) -> HttpError:
    """The error of a request whose time is over."""
    return unavailable("timeout", f"the request was not answered within {limits.request_seconds:g} seconds")


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
