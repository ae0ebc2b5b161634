"""Reading of parameters and JSON bodies of requests, and writing of JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request

from vitsplit.errors import VitsplitError
from vitsplit.files import parse_json
from vitsplit.serving.errors import invalid

MAX_JSON_BYTES = 1 << 16
"""Size limit of JSON bodies, which are parsed in the event loop."""


def dump(value: Any) -> bytes:
    """JSON without spaces; NaN and infinities are errors, since JSON does not have them."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def parameter(request: Request, name: str, allowed: tuple[str, ...]) -> str:
    """A query parameter with few values, the first of which is the default.

    Raises:
        HttpError: It has another value.
    """
    value = request.query_params.get(name, allowed[0])
    if value not in allowed:
        raise invalid("invalid_parameter", f"{name} must be one of {', '.join(allowed)}, not {value[:100]!r}")
    return value


def check_parameters(request: Request, known: set[str]) -> None:
    """Refuses unknown parameters, such as misspelled ones, and repeated ones.

    Raises:
        HttpError: There is one.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            raise invalid(
                "invalid_parameter", f"unknown parameter {name[:100]!r}", f"Parameters: {', '.join(sorted(known))}."
            )
        if names.count(name) > 1:
            raise invalid("invalid_parameter", f"{name} is given more than once")


def parse_request_json(content: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        HttpError: It is no JSON, or no object.
    """
    try:
        found = parse_json(content.decode("utf-8"), "the body", error=VitsplitError, advice="")
    except (UnicodeDecodeError, VitsplitError):
        raise invalid("invalid_json", "the body is not valid JSON") from None
    if not isinstance(found, dict):
        raise invalid("invalid_json", "the body must be a JSON object")
    return found
