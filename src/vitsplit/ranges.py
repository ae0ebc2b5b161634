"""Ranges of settings. They stand on the field, once, and one function checks them wherever settings come from.

::

    steps: Annotated[int, Range(1, 10**9)] = 40_000
    test_scales: Annotated[tuple[float, ...], Range(0.1, 8), Length(1, 16)] = (1.0,)

A range of a list, or of an object with numbers, is that of each of its values. ``None`` has no range. Upper ends are
where no more can be meant: they catch slips of the pen and settings of a stranger's that ask for gigabytes or for days.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.files import LONGEST_NAME, inside, shown

LONG_TEXT = 1 << 16
"""Characters: the most of a setting that is a text to be read, such as a system prompt."""
MAX_SIDE = 8192
"""Pixels: the longest side of a crop, or of what images are resized to."""
MAX_PIXELS = 2**25
"""The most pixels of a crop, or of what images are resized to: more are cut into tiles."""
MAX_NEW_TOKENS = 2**14
"""The most tokens of an answer that can be asked for."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Range:
    """From which to which number; NaN and the infinities are outside of every range.

    Attributes:
        least: The least.
        most: The largest.
        above: Whether ``least`` itself is excluded.
        below: Whether ``most`` itself is excluded.
    """

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        try:
            number = float(value)
        except OverflowError:
            return False
        return (self.least < number if self.above else self.least <= number) and (
            number < self.most if self.below else number <= self.most
        )

    def __str__(self) -> str:
        upper = f"below {self.most:,g}" if self.below else _number(self.most)
        if self.above:
            return f"above {self.least:,g} and {upper if self.below else f'at most {upper}'}"
        return f"from {_number(self.least)} to {upper}"


@dataclass(frozen=True)
class Length:
    """How many values a list, or characters a text, may have."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Opens:
    """Marks a setting that is a path outside of the data: a file or folder that is opened if the setting is followed.

    A bundle's card follows none of them (``bundle.read_card``); a configuration file those that are read, and says so.

    Attributes:
        writes: Whether something is written there.
        inside_data: Whether it is a name inside the data folder, unless it leads out of it.
    """

    writes: bool = False
    inside_data: bool = False

    def leads_out(self, value: str | bool) -> bool:
        """Whether following it opens something that the user did not name."""
        if isinstance(value, bool):  # a switch that lets names in the data lead out of their folder
            return value
        if not self.inside_data:
            return True
        try:
            inside(Path("data"), value, "", error=ConfigError)
        except ConfigError:
            return True
        return False


class Setting(typing.NamedTuple):
    """One setting of a configuration: where it stands, its annotation and its value."""

    place: tuple[str, ...]
    kind: Any
    value: Any
    prefix: str

    @property
    def flag(self) -> str:
        """Its flag, such as ``--crop-size`` or, of one of several heads, ``--depth.lr``."""
        return f"--{self.prefix}{self.place[-1].replace('_', '-')}"

    def marks(self, mark: type) -> list[Any]:
        """What of a kind stands on the field."""
        return [each for each in getattr(self.kind, "__metadata__", ()) if isinstance(each, mark)]


def check_ranges(config: Any, source: str = "", *, prefix: str = "") -> None:
    """Refuses a configuration with a value that is out of its range.

    Args:
        config: A settings dataclass, with those in it.
        source: The file that it was read from, for the message; empty: the command line or a program.
        prefix: What stands before the flags' names, such as ``depth.``.

    Raises:
        ConfigError: Names the flag, the range and the value.
    """
    for setting in settings_of(config, prefix):
        _check(setting, source)


def check_pixels(flag: str, size: tuple[int, int], scale: float = 1.0) -> None:
    """Refuses a height and width (of which each is in its range) that are too many pixels together.

    Raises:
        ConfigError: Names the flag.
    """
    if size[0] * size[1] * scale**2 > MAX_PIXELS:
        at = f"{flag} {size[0]} {size[1]}" + (f" at a scale of {scale:g}" if scale != 1 else "")
        raise ConfigError(f"{at}: at most {MAX_PIXELS:,} pixels are possible.")


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """The same for the arguments of a function whose parameters carry the ranges.

    Raises:
        ConfigError: As ``check_ranges``.
    """
    kinds = _kinds(function)
    for name, value in arguments.items():
        _check(Setting((name,), kinds.get(name), value, ""), "")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which refuses arguments that are out of their ranges."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check_arguments(function, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


def settings_of(config: Any, prefix: str = "", place: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of a configuration that is not itself a group of settings."""
    owner: Any = type(config)
    kinds = _kinds(owner)
    for field in dataclasses.fields(config):
        value, here = getattr(config, field.name), (*place, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, prefix, here)
        elif field.name == "heads":
            for name, head in value.items():
                yield from settings_of(head, f"{name}." if len(value) > 1 else prefix, (*here, name))
        else:
            yield Setting(here, kinds[field.name], value, prefix)


def with_value(config: Any, place: tuple[str, ...], value: Any) -> Any:
    """The configuration with one setting changed."""
    name, *rest = place
    if isinstance(config, Mapping):  # heads by their names
        return {**config, name: with_value(config[name], tuple(rest), value)}
    new = with_value(getattr(config, name), tuple(rest), value) if rest else value
    return dataclasses.replace(config, **{name: new})


@functools.cache
def _kinds(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(owner, include_extras=True)


def _check(setting: Setting, source: str) -> None:
    at = f"{source}: {setting.flag}" if source else setting.flag
    ranges, lengths = setting.marks(Range), setting.marks(Length)
    values = setting.value
    if isinstance(values, str):
        if not values and setting.marks(Opens):
            raise ConfigError(f"{at} is empty, which would be the present folder. Give a path, or None.")
        _check_text(values, at, lengths)
        return
    if isinstance(values, dict | list | tuple):
        for length in lengths:
            if not length.least <= len(values) <= length.most:
                raise ConfigError(f"{at} takes {length} values, not {len(values)}.")
        if isinstance(values, dict):
            for name in values:
                _check_text(name, at, [])
            values = values.values()
    else:
        values = [values]
    for value in values:
        if isinstance(value, str):
            _check_text(value, at, [])
        elif isinstance(value, float) and not math.isfinite(value) and not ranges:
            raise ConfigError(f"{at} must be a finite number, not {value}.")
        elif value is not None:
            for allowed in ranges:
                if isinstance(value, bool) or value not in allowed:
                    raise ConfigError(f"{at} must be {allowed}, not {_said(setting.value)}.")


def _check_text(text: str, at: str, lengths: list[Length]) -> None:
    most = lengths[0].most if lengths else LONGEST_NAME
    if len(text) > most:
        raise ConfigError(f"{at} has {len(text):,} characters, and at most {most:,} are possible.")
    if _CONTROL.search(text):
        raise ConfigError(f"{at} has a control character in it: {shown(text)}. Omit it.")


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(_said(item) for item in value[:8]) + (" ..." if len(value) > 8 else "")
    return str(value) if isinstance(value, float) else shown(value)


def _number(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) and abs(value) < 10**13 else f"{value:,g}"
