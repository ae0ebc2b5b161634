"""Error messages for invalid settings: the flag, or the file and the key, with the range and the value."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from vitsplit.files import shown


def flag_of(name: str) -> str:
    """The flag of a field: ``--crop-size`` of ``crop_size``."""
    return f"--{name.replace('_', '-')}"


def message(error: ValidationError, owner: Any, values: Any, source: str = "", where: str = "") -> str:
    """The message for a validation error, with the location and the valid values.

    Args:
        error: The error of pydantic.
        owner: The settings class, or the function whose arguments were checked.
        values: The values that were checked.
        source: The file of the values; empty: the command line or a program.
        where: Prefix of keys in the file.
    """
    problems = [(*_locate(owner, each["loc"]), each) for each in error.errors(include_url=False)]
    names = problems[0][0]
    # A union has one problem per type: prefer errors of the value over errors of the type.
    _, kind, problem = min(
        (each for each in problems if each[0] == names), key=lambda each: str(each[2]["type"]).endswith("_type")
    )
    before = f"{source}: " if source else ""
    key = where + ".".join(names)
    flag = flag_of(names[-1]) if names else ""
    at = f"{before}{shown(key)} ({flag})" if source else flag
    match problem["type"]:
        case "missing" if len(problem["loc"]) == len(names):
            return f"{before}the setting {shown(key)} is missing."
        case "unexpected_keyword_argument":
            name = str(problem["loc"][-1])
            known = field_kinds(_locate(owner, problem["loc"][:-1])[1])
            return f"{before}there is no setting {shown(where + '.'.join([*names, name]))}. {suggestion(name, known)}"
        case "dataclass_type" | "dataclass_exact_type":
            what = shown(key) if names else "the configuration"
            return f"{before}{what} must be an object with settings, not {shown(problem['input'])}."
        case "value_error":
            text = str(problem["ctx"]["error"])
            return f"{before}{text}" if settings_kind(kind) else f"{at} {text}"
    for name in names:
        values = values[name] if isinstance(values, Mapping) else getattr(values, name)
    return f"{at} must be {describe(kind)}, not {_format_value(values)}."


def describe(kind: Any) -> str:
    """A type with its range, in words: ``a whole number from 1 to 8,192``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return describe(arguments[0]) + _range(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list of values, each {describe(arguments[0])}"
        items = list(map(describe, arguments))
        return f"{len(items)} values, " + (f"each {items[0]}" if len(set(items)) == 1 else ", ".join(items))
    if origin is dict:
        return f"pairs of a name and {describe(arguments[1])}"
    words = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false", Path: "a path"}
    return "None" if kind in (None, types.NoneType) else words.get(kind, "an object with settings")


def describe_ranges(kind: Any) -> str:
    """The ranges of a type and its nested types, in words: `` (from 1 to 8,192)``; empty if there are none."""
    inner = typing.get_args(kind) if typing.get_origin(kind) is not Literal else ()
    found = [_range(kind).strip(" ()"), *(describe_ranges(each).strip(" ()") for each in inner)]
    texts = list(dict.fromkeys(each for each in found if each and not each.endswith(("values", "characters"))))
    return f" ({'; '.join(texts)})" if texts else ""


def suggestion(name: str, known: Collection[str]) -> str:
    """Suggests known names similar to an unknown one, or lists all."""
    close = difflib.get_close_matches(name[:100], known, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else f"Settings here: {', '.join(sorted(known))}."


def settings_kind(kind: Any) -> Any:
    """The settings class of an annotation, with its arguments; None if it has none."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return settings_kind(typing.get_args(kind)[0])  # the other arguments are metadata
    if origin in (typing.Union, types.UnionType):
        return next(filter(None, map(settings_kind, typing.get_args(kind))), None)
    return kind if dataclasses.is_dataclass(origin or kind) else None


@functools.cache
def field_kinds(owner: Hashable) -> dict[str, Any]:
    """The annotations of a settings class, or of a function's parameters."""
    if inspect.isfunction(owner):
        return typing.get_type_hints(owner, include_extras=True)
    kind = settings_kind(owner)
    cls = typing.get_origin(kind) or kind
    arguments = dict(zip(getattr(cls, "__parameters__", ()), typing.get_args(kind), strict=False))
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: arguments.get(hints[field.name], hints[field.name]) for field in dataclasses.fields(cls)}


def marks(kind: Any) -> Iterator[Any]:
    """The metadata of an annotation, including constraints inside of ``Field``."""
    for mark in getattr(kind, "__metadata__", ()):
        yield mark
        if isinstance(mark, FieldInfo):
            yield from mark.metadata


def _locate(owner: Any, loc: Sequence[Any]) -> tuple[list[str], Any]:
    """The field names on the path to a problem, and the annotation of the last."""
    names: list[str] = []
    for step in loc:
        if isinstance(step, int) and inspect.isfunction(owner):  # a positional argument
            step = list(inspect.signature(owner).parameters)[step]
        if typing.get_origin(owner) is dict and settings_kind(typing.get_args(owner)[1]):
            owner = typing.get_args(owner)[1]
        elif (inspect.isfunction(owner) or settings_kind(owner)) and step in field_kinds(owner):
            owner = field_kinds(owner)[step]
        else:
            break
        names.append(str(step))
    return names, owner


def _range(kind: Any) -> str:
    """The constraints of an annotation in words, such as `` from 1 to 8,192``; empty if there are none."""
    found: dict[str, str] = {}
    for mark in marks(kind):
        for name in () if isinstance(mark, FieldInfo) else ("ge", "gt", "le", "lt", "min_length", "max_length"):
            if getattr(mark, name, None) is not None:
                found[name] = _number(getattr(mark, name))
    if not found:
        return ""
    if found.keys() == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    words |= {"min_length": "at least", "max_length": "at most"}
    unit = f" {'characters' if describe(typing.get_args(kind)[0]) == 'a string' else 'values'}"
    parts = [f"{words[name]} {each}{unit * name.endswith('length')}" for name, each in found.items()]
    return f" ({' and '.join(parts)})"


def _number(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) and abs(value) < 10**13 else f"{value:,g}"


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_format_value(item) for item in value[:8]) + (" ..." if len(value) > 8 else "")
    return str(value) if isinstance(value, float) else shown(value)
