"""``POST /v1/ask``: an answer about an image as server-sent events.

The visual tokens of the last images are cached, so that further questions do not encode the image again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.asking import vqa_head
from vitsplit.serving.errors import HttpError, internal, invalid
from vitsplit.serving.fields import MAX_JSON_BYTES, check_parameters, dump, parse_request_json
from vitsplit.serving.heads import ServedHead
from vitsplit.serving.images import sha256
from vitsplit.serving.service import Service, client_of, too_late
from vitsplit.serving.slots import Slots

logger = logging.getLogger(__name__)

LONGEST_QUESTION = 4096
"""Most characters of a question; the language model's window is a limit too."""
WAITING = 8
"""Most questions that wait for the language model or are answered."""
MOST_NEW_TOKENS = 1 << 14


class Asking:
    """Answers questions, one at a time, in a thread beside the one of the model.

    Args:
        service: The heads.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._slots = Slots(WAITING)
        self._cached: OrderedDict[tuple[str, str], tuple[Any, list[int]]] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vitsplit-ask")

    def close(self) -> None:
        """Ends the thread, after the accepted questions."""
        self._thread.shutdown()

    def forget(self, bundle: str) -> None:
        """Forgets the images of a bundle."""
        for key in [key for key in self._cached if key[0] == bundle]:
            del self._cached[key]

    async def ask(self, request: Request) -> Response:
        """Answers a request."""
        check_parameters(request, {"question", "bundle", "max_new_tokens"})
        is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
        given: dict[str, Any] = dict(request.query_params)
        if is_json:
            given |= _json_fields(await self.service.read_body(request, MAX_JSON_BYTES))
        question, head, most = self._checked(given)
        with ExitStack() as held:
            if is_json:
                held.enter_context(self._slots.one("questions", client_of(request)))
                answerer, event = self._of_cached(head.name, given.get("image_sha256"))
            else:
                with self.service.hold({head.name: head}):
                    content = await self.service.read_body(request)
                    held.enter_context(self._slots.one("questions", client_of(request)))
                    answerer, event = await self._of_image(request, content, head)
            return _Events(self._events(answerer, question, most, event), held.pop_all())

    def _checked(self, given: dict[str, Any]) -> tuple[str, ServedHead, int | None]:
        question, bundle, most = given.get("question"), given.get("bundle"), given.get("max_new_tokens")
        if not isinstance(question, str) or not question.strip() or len(question) > LONGEST_QUESTION:
            raise invalid("invalid_question", f"question must be a text of 1 to {LONGEST_QUESTION} characters")
        if isinstance(most, str) and most.isdecimal() and len(most) < 6:
            most = int(most)
        if most is not None and (type(most) is not int or not 1 <= most <= MOST_NEW_TOKENS):
            raise invalid("invalid_parameter", f"max_new_tokens must be a number from 1 to {MOST_NEW_TOKENS}")
        if bundle is None:
            try:
                bundle = vqa_head({name: head.head.card for name, head in self.service.heads.items()})
            except ConfigError:
                asking = [name for name, head in self.service.heads.items() if head.task.answers_questions]
                raise invalid(
                    "invalid_parameter",
                    f"there are {len(asking)} bundles that answer questions",
                    f"Name one with bundle=NAME: {', '.join(asking)}." if asking else "",
                ) from None
        head = self.service.head(str(bundle))
        if not head.task.answers_questions:
            raise invalid("invalid_parameter", f"the bundle {head.name} does not answer questions", "Use /v1/predict.")
        return question, head, most

    def _of_cached(self, bundle: str, digest: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(digest, str):
            raise invalid("invalid_json", "image_sha256 must be a text")
        found = self._cached.get((bundle, digest))
        if found is None:
            raise HttpError(
                HTTPStatus.NOT_FOUND,
                "unknown_image",
                "image_sha256 is not a cached image",
                "Send the image again.",
            )
        self._cached.move_to_end((bundle, digest))
        answerer, size = found
        return answerer, {"sha256": digest, "size": size, "bundle": bundle, "reused": True, "timing": {}, "pass": []}

    async def _of_image(self, request: Request, content: bytes, head: ServedHead) -> tuple[Any, dict[str, Any]]:
        bundle, timing = head.name, dict[str, float]()
        with self.service.slots.one("requests", client_of(request)):
            digest = await self.service.in_pool("hash", lambda: sha256(content), request, {})
            if (bundle, digest) in self._cached:
                return self._of_cached(bundle, digest)
            image_HWC = await self.service.decode(request, content, timing)
            result = await self.service.predict(request, image_HWC, {bundle: head}, timing)
        answerer = result.predictions[bundle].answerer
        if bundle in self.service.heads:  # it may have been removed meanwhile
            self._cached[bundle, digest] = (answerer, list(result.size))
            while len(self._cached) > self.service.limits.cached_images:
                self._cached.popitem(last=False)
        event = {"sha256": digest, "size": list(result.size), "bundle": bundle, "reused": False}
        return answerer, event | {"timing": timing, "pass": result.passes}

    async def _events(
        self, answerer: Any, question: str, most: int | None, image: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """The events of an answer; ends the generation when the client has disconnected or the time is over."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()

        def put(piece: str | BaseException | None) -> None:
            if not stopped.is_set():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        try:
            yield _event("image", image)
            begun, answer = time.perf_counter(), ""
            self._thread.submit(_answer, answerer, question, most, put, stopped)
            ends = loop.time() + self.service.limits.request_seconds
            while isinstance(piece := await asyncio.wait_for(pieces.get(), ends - loop.time()), str):
                answer += piece
                yield _event("", {"text": piece})
            if piece is not None:
                raise piece
            timing: dict[str, float] = {}
            self.service.observe("answer", time.perf_counter() - begun, timing)
            yield _event("done", {"answer": answer.strip()} | timing)
        except TimeoutError:
            yield _event("error", too_late(self.service.limits).to_json())
        except DataError as error:
            yield _event("error", self.service.refused("invalid_question", error).to_json())
        except Exception:
            logger.exception("unexpected error")
            yield _event("error", internal().to_json())
        finally:
            stopped.set()


class _Events(StreamingResponse):
    """A stream of events that releases what it holds when it ends, also if it was not begun."""

    def __init__(self, events: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def _answer(answerer: Any, question: str, most: int | None, put: Any, stopped: threading.Event) -> None:
    """Runs in the thread of answers."""
    try:
        if stopped.is_set():
            return
        with closing(answerer.stream(question, (), max_new_tokens=most)) as pieces:
            for piece in pieces:
                if stopped.is_set():
                    return
                put(piece)
        put(None)
    except BaseException as error:  # raised in the handler
        put(error)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + dump(data) + b"\n\n"


def _json_fields(content: bytes) -> dict[str, Any]:
    fields = parse_request_json(content)
    for name in fields.keys() - {"image_sha256", "question", "bundle", "max_new_tokens"}:
        raise invalid("invalid_parameter", f"unknown field {name[:100]!r}")
    return fields
