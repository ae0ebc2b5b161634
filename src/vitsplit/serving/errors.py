"""Errors of requests: ``{"error": {"code", "message", "remedy"}}``, without paths of the server."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from vitsplit.errors import VitsplitError

RETRY_AFTER = 1
"""Seconds after which a client should repeat a request that was refused with status 503."""
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:)?[/\\][^\s:;,'\"()<>]*")


class HttpError(Exception):
    """An answer other than success.

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
        """The body of the answer."""
        error = {"code": self.code, "message": self.message}
        return {"error": error | ({"remedy": self.remedy} if self.remedy else {})}

    @property
    def headers(self) -> dict[str, str]:
        """Further headers of the answer."""
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            return {"Retry-After": str(RETRY_AFTER)}
        return {"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {}


class ClientGoneError(Exception):
    """The client has closed the connection, so that there is nobody to answer."""


def invalid(code: str, message: str, remedy: str = "") -> HttpError:
    """An error of the request, with status 400."""
    return HttpError(HTTPStatus.BAD_REQUEST, code, message, remedy)


def unavailable(code: str, message: str) -> HttpError:
    """An error with status 503, after which the same request may succeed."""
    return HttpError(HTTPStatus.SERVICE_UNAVAILABLE, code, message, "Repeat the request after the time in Retry-After.")


def refused(code: str, error: VitsplitError) -> HttpError:
    """An error of vitsplit as one of the request, without paths of the server."""
    return invalid(code, without_paths(str(error)))


def without_paths(text: str) -> str:
    """The text with absolute paths replaced by ``...``."""
    return _PATH.sub("...", text)
