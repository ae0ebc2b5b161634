"""Configurations as plain JSON values and back, with every mistake named."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.ranges import check_ranges


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass, with those inside it, as JSON-ready values: tuples become lists, paths strings."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def from_dict(cls: Any, data: Any, source: str, where: str | None = None) -> Any:
    """The configuration that ``to_dict`` wrote, or that somebody wrote by hand. What is left out keeps its default.

    Args:
        cls: The dataclass; a generic one with its argument, as in ``HeadConfig[DepthConfig]``.
        data: The parsed JSON.
        source: Where it comes from, for messages.
        where: The place in a whole whose ranges are checked later, for messages; None: this is the whole.

    Raises:
        ConfigError: An unknown key (with the closest known ones), a missing one, or a value of a wrong type or out of
            its range.
    """
    config = _read_dataclass(cls, data, source, where or "")
    if where is None:
        check_ranges(config, source)
    return config


def check_keys(data: Any, known: list[str], source: str, where: str = "") -> None:
    """Refuses what is no object, or has a key that is not known.

    Raises:
        ConfigError: Names the key, and the closest known ones.
    """
    if not isinstance(data, dict):
        raise ConfigError(
            f"{source}: {where or 'the configuration'} must be an object with settings, not {shown(data)}."
        )
    for key in data:
        if key not in known:
            raise ConfigError(
                f"{source}: there is no setting {shown(_join(where, key))}. {_suggestion(key[:100], known)}"
            )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": getattr(value, "name", ""), **fields} if hasattr(value, "by_name") else fields
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read_dataclass(cls: Any, data: Any, source: str, where: str) -> Any:
    generic = typing.get_origin(cls) or cls
    if hasattr(generic, "by_name") and isinstance(data, dict):  # one of several classes, which the name says
        data = dict(data)
        name = _read(str, data.pop("name", None), source, _join(where, "name"))
        try:
            generic = generic.by_name(name)
        except ConfigError as error:
            raise ConfigError(f"{source}: '{_join(where, 'name')}': {error}") from error
    fields = {field.name: field for field in dataclasses.fields(generic)}
    check_keys(data, list(fields), source, where)
    arguments = dict(zip(getattr(generic, "__parameters__", ()), typing.get_args(cls), strict=False))
    hints = typing.get_type_hints(generic)
    values = {
        key: _read(arguments.get(hints[key], hints[key]), item, source, _join(where, key)) for key, item in data.items()
    }
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{source}: the setting '{_join(where, name)}' is missing.")
    return generic(**values)


def _read(kind: Any, value: Any, source: str, where: str) -> Any:
    """A value as the annotated type, or a ConfigError."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(origin or kind):
        return _read_dataclass(kind, value, source, where)
    if origin in (Union, types.UnionType):
        return _read_union(kind, value, source, where)
    if origin is tuple and isinstance(value, list | tuple):
        return _read_tuple(kind, value, source, where)
    if origin is dict and isinstance(value, dict):
        item_kind = typing.get_args(kind)[1]
        return {key: _read(item_kind, item, source, _join(where, key)) for key, item in value.items()}
    if origin is Literal and value in typing.get_args(kind):
        return value
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number of hundreds of digits
            return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (int, str, bool, types.NoneType) and type(value) is kind:
        return value
    raise ConfigError(f"{source}: '{where}' must be {_name(kind)}, not {shown(value)}.")


def _read_union(kind: Any, value: Any, source: str, where: str) -> Any:
    members = typing.get_args(kind)
    for member in members:
        try:
            return _read(member, value, source, where)
        except ConfigError:
            if dataclasses.is_dataclass(typing.get_origin(member) or member) and isinstance(value, dict):
                raise  # the message about the setting inside says more
    raise ConfigError(f"{source}: '{where}' must be {_name(kind)}, not {shown(value)}.")


def _read_tuple(kind: Any, value: Any, source: str, where: str) -> tuple[Any, ...]:
    members = typing.get_args(kind)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise ConfigError(f"{source}: '{where}' must have {len(members)} values, not {len(value)}.")
    return tuple(
        _read(member, item, source, f"{where}[{index}]")
        for index, (member, item) in enumerate(zip(members, value, strict=True))
    )


def _suggestion(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=3)
    return f"Did you mean {' or '.join(close)}?" if close else f"Settings here: {', '.join(known)}."


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _name(kind: Any) -> str:
    """A type in the words of a configuration file."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(_name(member) for member in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each item {_name(arguments[0])}"
        return f"a list of {len(arguments)} ({', '.join(map(_name, arguments))})"
    if kind is types.NoneType:
        return "null"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return words.get(kind, "an object")
