"""Malformed inputs made from valid ones, by seed."""

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A piece of JSON text that ``json.dumps`` would not write."""

    text: str


def dumps(value: Any) -> str:
    """JSON, with ``Raw`` pieces as they are and ``Twice`` keys twice."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


class Twice(str):
    """A key that differs from the one it is written like, so that a dictionary can hold both."""

    __slots__ = ()

    def __hash__(self) -> int:
        return hash(("twice", str(self)))

    def __eq__(self, other: object) -> bool:
        return self is other


# Invalid in most places; the rules of the area decide whether one is valid in a certain place.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 65_536, 1.7, -0.5, 1e-12, 10**9, 10**18, 10**30, 1e300, 2**63, "", " ", "1",
    "1_0", "-3", "NaN", "text", "true", "../../outside", "/etc/passwd", "a\x00b", "line\nbreak", "\u202e", "é" * 3,
    "x" * 100_000, "#-12345", "#12_456", "#00ff00", [], {}, [[]], [None], [1, 2], [0, 0, 0], ["a", "a"], {"a": 1},
    [1] * 5000,
)  # fmt: skip
# Not JSON, or not representable: rejected in every place.
NEVER: tuple[Raw, ...] = (
    Raw("NaN"), Raw("-Infinity"), Raw("1" * 6000), Raw('"\\ud800"'), Raw("[" * 3000 + "]" * 3000), Raw("'a'"),
    Raw("01"), Raw("[1,]"), Raw('"a\nb"'), Raw('{"a": 1, "a": 1}'), Raw("undefined"), Raw("{" * 50_000),
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


def changed_json(value: Any, generator: random.Random) -> tuple[str, Any, str]:
    """A JSON text that differs from ``value`` in one place.

    Returns:
        The text; the value that it represents, or ``NotImplemented`` if it represents none; and the change.
    """
    value = copy.deepcopy(value)
    way = generator.choice(list(places(value)))
    holder = value
    for key in way[:-1]:
        holder = holder[key]
    key, kind = way[-1], generator.random()
    at = ".".join(map(str, way))
    if kind < 0.1:
        del holder[key]
        return dumps(value), value, f"without {at}"
    if kind < 0.15 and isinstance(holder, dict):
        holder[Twice(key)] = holder[key]
        return dumps(value), NotImplemented, f"{at} twice"
    if kind < 0.2 and isinstance(holder, dict):
        holder["surplus"] = generator.choice(VALUES)
        return dumps(value), value, f"a surplus key beside {at}"
    if kind < 0.35:
        holder[key] = generator.choice(NEVER)
        return dumps(value), NotImplemented, f"{at} = {holder[key].text[:30]}"
    if kind < 0.45 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
        return dumps(value), value, f"{at} repeated"
    if kind < 0.5 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = Raw("1e999")  # a number to JSON, an infinity to every reader
        return dumps(value), NotImplemented, f"{at} = 1e999"
    holder[key] = generator.choice(VALUES)
    return dumps(value), value, f"{at} = {str(holder[key])[:30]!r}"


def changed_bytes(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Bytes corrupted as by a damaged disk, a wrong tool or an attacker."""
    at = generator.randrange(max(len(content), 1))
    junk = generator.randbytes(generator.choice((1, 4, 64)))
    match generator.randrange(9):
        case 0:
            return content[:at], f"cut at {at}"
        case 1:
            return content[:at] + junk + content[at + len(junk) :], f"{len(junk)} bytes overwritten at {at}"
        case 2:
            return content[:at] + junk + content[at:], f"{len(junk)} bytes inserted at {at}"
        case 3:
            return b"", "empty"
        case 4:
            return b"\x00" * len(content), "zeros"
        case 5:
            return content.decode("latin-1").encode("utf-16"), "UTF-16"
        case 6:
            return content + content, "twice"
        case 7:
            return b"[" * 100_000, "nested"
        case _:
            end = at + generator.randrange(1, 32)
            return content[:at] + content[end:], f"{at} to {end} removed"


def not_a_file(path: Path, generator: random.Random) -> str:
    """Replaces a file by something that must not be read."""
    path.unlink()
    match generator.randrange(4):
        case 0:
            os.mkfifo(path)
            return "a pipe"
        case 1:
            path.symlink_to("/dev/zero")
            return "a device"
        case 2:
            path.mkdir()
            return "a folder"
        case _:
            with path.open("wb") as file:
                file.truncate(1 << 42)
            return "four terabytes"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a reader: its result or its error."""

    result: Any = None
    error: BaseException | None = None


def outcome(use: Callable[[], Any]) -> Outcome:
    """Runs a reader."""
    try:
        return Outcome(result=use())
    except BaseException as error:
        return Outcome(error=error)
