"""Errors of requests: ``{"error": {"code", "message", "remedy"}}``, without paths of the server."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from vitsplit.errors import VitsplitError

RETRY_AFTER = 1
"""Seconds after which a client should repeat a request that was refused with status 503."""
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\][^\s:;,'\"()<>]*")


class HttpError(Exception):
    """A response other than success.

    Args:
        status: The HTTP status.
        code: Identifies the error for programs.
        message: Says what is wrong.
        remedy: Says what to do; may be empty.
    """

    def __init__(self, status: HTTPStatus, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.remedy = status, code, message, remedy

    def to_json(self) -> dict[str, Any]:
        """The body of the response."""
        error = {"code": self.code, "message": self.message}
        return {"error": error | ({"remedy": self.remedy} if self.remedy else {})}

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the response."""
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return {"Retry-After": str(RETRY_AFTER)}
        return {"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {}


class ClientGoneError(Exception):
    """The client has disconnected, so that there is nobody to respond to."""


def invalid(code: str, message: str, remedy: str = "") -> HttpError:
    """An error of the request, with status 400."""
    return HttpError(HTTPStatus.BAD_REQUEST, code, message, remedy)


def unavailable(code: str, message: str) -> HttpError:
    """An error with status 503, after which the same request may succeed."""
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, code, message, "Repeat the request after the time in Retry-After.")


def internal() -> HttpError:
    """An unexpected error, without its details."""
    return HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "an unexpected error, see the server's log")


def refused(code: str, error: VitsplitError, roots: Iterable[Path] = ()) -> HttpError:
    """An error of vitsplit as one of the request, without paths of the server."""
    return invalid(code, without_paths(str(error), roots))


def without_paths(text: str, roots: Iterable[Path] = ()) -> str:
    """The text with absolute paths replaced by ``...``.

    Args:
        text: The text.
        roots: Folders of the server. Their names may have spaces, where other paths are taken to end.
    """
    for root in sorted(map(str, roots), key=len, reverse=True):
        if len(root) > 1:
            text = text.replace(root, "/...")
    return _PATH.sub("...", text)
