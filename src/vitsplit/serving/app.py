"""The ASGI application: routes, headers, and errors as JSON."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitsplit.serving import admin, kserve
from vitsplit.serving.admin import Administration
from vitsplit.serving.ask import Asking
from vitsplit.serving.errors import ClientGoneError, HttpError, internal
from vitsplit.serving.heads import backbone_json
from vitsplit.serving.limits import FORMATS
from vitsplit.serving.openapi import document
from vitsplit.serving.predict import predict
from vitsplit.serving.service import Service

logger = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
"""Files of the page and their media types, by path."""
HOST_PORT = re.compile(r":\d*$")
CLIENT_GONE = 499
"""Status of requests whose client has disconnected, in the metrics only."""
Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    service: Service,
    administration: Callable[[Asking], Administration] | None = None,
    hosts: Container[str] | None = None,
) -> Starlette:
    """The application.

    Args:
        service: The heads; closed when the application ends.
        administration: Makes what adds and removes heads; None: heads cannot be changed.
        hosts: Names in ``Host`` of requests that are accepted; None: all.
    """
    asking = Asking(service)
    changes = None if administration is None else administration(asking)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with changes.following() if changes else nullcontext():
            yield
        asking.close()
        service.close()

    async def predict_route(request: Request) -> Response:
        return await predict(service, request)

    async def bundles(request: Request) -> Response:
        limits = service.limits
        return JSONResponse(
            {
                "backbone": backbone_json(service.predictor),
                "bundles": {name: head.to_json() for name, head in service.heads.items()},
                "limits": {
                    "max_body_bytes": limits.max_body,
                    "max_pixels": limits.decoding.pixels,
                    "types": list(FORMATS.values()),
                },
            }
        )

    async def healthy(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if service.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "stopping" if service.stopping else "failed"}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(request: Request) -> Response:
        return JSONResponse(document(service))

    async def refuse(request: Request) -> Response:
        raise admin.not_offered()

    app = Starlette(
        routes=[
            Route("/v1/predict", predict_route, methods=["POST"]),
            Route("/v1/ask", asking.ask, methods=["POST"]),
            Route("/v1/bundles", bundles),
            Route("/v1/bundles/{name}", changes.put if changes else refuse, methods=["PUT"]),
            Route("/v1/bundles/{name}", changes.delete if changes else refuse, methods=["DELETE"]),
            Route("/healthz", healthy),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            *kserve.routes(service),
            *[Route(path, _page(name, media_type)) for path, (name, media_type) in PAGE.items()],
        ],
        middleware=[Middleware(Guard, service=service, hosts=hosts)],
        exception_handlers={HttpError: _on_error, HTTPException: _on_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _page(name: str, media_type: str) -> Handler:
    async def send(request: Request) -> Response:
        file = files("vitsplit.serving") / "page" / name
        return Response(file.read_bytes(), media_type=media_type, headers={"Content-Security-Policy": PAGE_POLICY})

    return send


async def _on_error(request: Request, error: Exception) -> Response:
    """The response to an error of the request, in the form of the protocol."""
    if isinstance(error, HTTPException):  # of the routes
        status = HTTPStatus(error.status_code)
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "invalid_parameter")
        headers = dict(error.headers or {})
        error = HttpError(status, code, status.phrase, "See /openapi.json.")
    else:
        assert isinstance(error, HttpError)
        headers = error.headers
    request.state.refusal = error.code
    body: dict[str, Any] = error.to_json()
    path = request.scope["path"]
    if path == "/v2" or path.startswith("/v2/"):
        body = {"error": " ".join(filter(None, [error.message, error.remedy]))}
    return JSONResponse(body, error.status, headers)


class Guard:
    """Refuses requests of other web sites, adds headers to responses, counts them, and hides unexpected errors.

    Args:
        app: The application.
        service: The server's state.
        hosts: Names in ``Host`` of requests that are accepted; None: all.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Container[str] | None = None) -> None:
        self.app, self.service, self.hosts = app, service, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        status = CLIENT_GONE
        body_ended = False

        async def receive_counting() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or not message.get("more_body", False)
            return message

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self._headers(message, body_ended, scope)]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self.app(scope, receive_counting, send_guarded)
            else:
                await (await _on_error(Request(scope), refusal))(scope, receive_counting, send_guarded)
        except ClientGoneError:
            pass
        except Exception:
            logger.exception("unexpected error")
            if status == CLIENT_GONE:  # nothing was sent
                await (await _on_error(Request(scope), internal()))(scope, receive, send_guarded)
        self._count(scope, status)

    def _refusal(self, scope: Scope) -> HttpError | None:
        """The error of a request that a browser sends for another web site."""
        headers = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
        if self.hosts is not None and HOST_PORT.sub("", headers.get(b"host", "")) not in self.hosts:
            return HttpError(
                HTTPStatus.FORBIDDEN, "forbidden", "this name of the host is not served", "Add it with --allowed-host."
            )
        if scope["method"] not in ("GET", "HEAD") and headers.get(b"sec-fetch-site") == "cross-site":
            return HttpError(HTTPStatus.FORBIDDEN, "forbidden", "requests of other web sites are not accepted")
        return None

    def _headers(self, message: Message, body_ended: bool, scope: Scope) -> list[tuple[bytes, bytes]]:
        given = {name.lower() for name, _ in message.get("headers", [])}
        headers = {
            b"x-content-type-options": b"nosniff",
            b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
            b"referrer-policy": b"no-referrer",
            b"cache-control": b"no-store",
        }
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if self.service.stopping or (has_body and not body_ended):
            headers[b"connection"] = b"close"  # the rest of a body is not read
        return [(name, value) for name, value in headers.items() if name not in given]

    def _count(self, scope: Scope, status: int) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.service.metrics.responses.labels(route, str(status)).inc()
        reason = scope["state"].get("refusal", "client_gone" if status == CLIENT_GONE else None)
        if reason is not None:
            self.service.metrics.refusals.labels(reason).inc()
