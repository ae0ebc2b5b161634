"""HTTP connections of uvicorn, with the time limits that it does not have: headers, and clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitsplit.serving.service import Service

_SO_ATTACH_FILTER, _BPF_RETURN = 26, 0x06  # <linux/socket.h>, <linux/bpf_common.h>
LINGER_SECONDS = 0.5
"""Time after a signal in which connections are still accepted, and open ones are closed after their next response."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)
_FULL_BODY = b'{"error":{"code":"busy","message":"too many connections"}}'


class Config(uvicorn.Config):
    """Settings of uvicorn, with limits.

    Args:
        app: The application.
        service: Its limits and metrics.
        proxies: Addresses or networks of reverse proxies, whose ``X-Forwarded-For`` names the client.
    """

    def __init__(self, app: Any, service: Service, proxies: Sequence[str] = ()) -> None:
        limits = service.limits
        super().__init__(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",  # a warning for every malformed request would fill the log
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=list(proxies),
            timeout_keep_alive=max(1, round(limits.header_seconds)),
            timeout_graceful_shutdown=round(limits.request_seconds + limits.body_seconds) + 1,
        )
        self.limits, self.service = limits, service


class Connection(H11Protocol):
    """A connection that is closed if a header takes too long, or the client does not read its response.

    A request whose response is complete before its body also counts as waiting for a header.
    """

    config: Config
    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts or refuses a connection."""
        if len(self.connections) >= self.config.limits.max_connections:
            self._refused = True
            self.config.service.metrics.refusals.labels("busy").inc()
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()
            return
        super().connection_made(transport)
        # Writing is paused while any byte is not sent, so that a connection that is closed is limited in time as well.
        transport.set_write_buffer_limits(high=0)
        self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Receives a part of a header or body."""
        if not self._refused:
            super().data_received(data)
            self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the connection."""
        if not self._refused:
            super().connection_lost(exc)
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """Starts the time limit of a client that does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.config.limits.request_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Ends that time limit."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """Closes the connection after its request; one that was just opened may still send it."""
        if self.cycle is None:
            self.loop.call_later(LINGER_SECONDS, self._close_unused)
        else:
            super().shutdown()

    def _close_unused(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            super().shutdown()

    def _watch_header(self) -> None:
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self._header_timer is None:
            self._header_timer = self.loop.call_later(self.config.limits.header_seconds, self.transport.abort)
        elif not waits and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


class Server(uvicorn.Server):
    """Responds to the last requests before it stops.

    Args:
        config: The settings.
        last: Whether no other process accepts connections of the same port.
    """

    config: Config

    def __init__(self, config: Config, last: Callable[[], bool] = lambda: True) -> None:
        super().__init__(config)
        self._last = last

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Closes open connections after their next response, and stops when all responses are sent."""
        self.config.service.stopping = True
        await asyncio.sleep(LINGER_SECONDS)
        for listener in sockets or []:
            if self._last():
                _refuse_connections(listener)
        await asyncio.sleep(0.05)  # the event loop accepts those that are open
        await super().shutdown(sockets)


def _refuse_connections(listener: socket.socket) -> None:
    """Lets the system drop packets that open connections, on Linux, for all processes that have the socket.

    Without it, connections that are opened just before the socket is closed would be reset.
    """
    if sys.platform == "linux":
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(drop_all))
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
