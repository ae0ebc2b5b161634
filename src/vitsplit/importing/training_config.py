"""Settings in the configuration that mmcv writes into checkpoints (``meta.config``), work folders and logs.

The text is Python: assignments of literals and of calls of ``dict`` and ``range``. It is parsed, never executed.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.files import read_text, shown

LONGEST_TEXT = 1 << 20
"""Characters; Python's parser needs several hundred times the memory. A configuration of the release has 10,000."""
_CONSTANTS = {"inf": math.inf, "nan": math.nan}
"""Names in the text of floats."""
_LOGGED = "Config (path: "
"""Start of a line in the log of the release's training of segmentation, which has the configuration nowhere else."""


@dataclass(frozen=True)
class Unreadable:
    """In place of a value that is neither a literal nor a call of ``dict`` or ``range``."""

    line: int


class TrainingConfig:
    """The settings of a training run by their place, such as ``model.backbone.out_indices``.

    Args:
        values: The settings by name; may contain ``Unreadable``.
        source: The file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def get(self, place: str, default: Any = None) -> Any:
        """The value at a place, or ``default`` if it is not set or None.

        Raises:
            ConfigError: The value, or one within it, is unreadable; or the place is within something else than a
                dictionary.
        """
        value: Any = self.values
        passed: list[str] = []
        for name in place.split("."):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{self.source}: {'.'.join(passed)} is {shown(value)}, not a dictionary.")
            value = value.get(name)
            passed.append(name)
            if value is None:
                return default
            if isinstance(value, Unreadable):
                break
        if (line := _unreadable_line(value)) is not None:
            raise ConfigError(
                f"{self.source}: line {line} of the configuration computes {'.'.join(passed)}, and nothing is "
                "executed. Give its value, as mmcv's Config.dump writes it."
            )
        return value

    def whole_numbers(self, place: str) -> tuple[int, ...] | None:
        """A list of whole numbers, or None if the place is not set.

        Raises:
            ConfigError: The value is something else.
        """
        if (value := self.get(place)) is None:
            return None
        if (numbers := whole_numbers(value)) is None:
            raise self.invalid(place, value, "a list of whole numbers")
        return numbers

    def invalid(self, place: str, value: Any, need: str) -> ConfigError:
        """The error that bundles have no setting for a recorded value, only for ``need``."""
        return ConfigError(
            f"{self.source}: trained with {place}={shown(value)}, for which bundles have no setting. Possible: {need}."
        )


def whole_numbers(value: Any) -> tuple[int, ...] | None:
    """The numbers of a list, which may be floats that are whole; None if the value is something else."""
    if not isinstance(value, list | tuple):
        return None
    if not all(type(each) is int or (isinstance(each, float) and each.is_integer()) for each in value):
        return None
    return tuple(map(int, value))


def training_config(recorded: Any, file: str | Path | None, source: str) -> TrainingConfig:
    """The configuration of a checkpoint.

    Args:
        recorded: Its ``meta.config``; None if it has none.
        file: The file to read if it has none, or an unreadable one: as mmcv's ``Config.dump`` writes it, or the log of
            the release's training.
        source: The checkpoint, for messages.

    Raises:
        ConfigError: Both are readable, or the one that is used is unreadable.
    """
    if file is None:
        return parsed(recorded, source)
    if _is_readable(recorded):
        raise ConfigError(f"--config {file}: {source} records its configuration itself (meta.config). Omit it.")
    text = read_text(file, error=ConfigError, advice="Correct --config.")
    if logged := [line.partition("): ")[2] for line in text.splitlines() if line.startswith(_LOGGED)]:
        text = f"logged = {logged[-1]}"
    source = f"--config {file}"
    values = parsed(text, source).values
    if logged and isinstance(values["logged"], Mapping):
        values = values["logged"]
    if "_base_" in values or "model" not in values:
        raise ConfigError(
            f"{source}: not a complete configuration (it has no model, or inherits from other files). Give the file "
            "that mmcv writes into the work folder (Config.dump), or the log of the training."
        )
    return TrainingConfig(values, source)


def _is_readable(text: Any) -> bool:
    try:
        return bool(parsed(text, "").values)
    except ConfigError:
        return False


def parsed(text: Any, source: str) -> TrainingConfig:
    """The settings in the text of a configuration.

    A statement that is no assignment of a value to a name, such as an import, is not executed; the names that occur in
    it are unreadable from then on.

    Args:
        text: The text; None: no settings.
        source: The file, for messages.

    Raises:
        ConfigError: The text is too long, or no Python.
    """
    if text is None:
        return TrainingConfig({}, source)
    advice = "Give it with --config, as mmcv's Config.dump writes it."
    if not isinstance(text, str):
        raise ConfigError(f"{source}: its configuration (meta.config) is {shown(text)}, not text. {advice}")
    if len(text) > LONGEST_TEXT:
        raise ConfigError(f"{source}: a configuration of {len(text):,} characters; at most {LONGEST_TEXT:,}. {advice}")
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = _value(value)
                case _:
                    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
                    values |= dict.fromkeys(names, Unreadable(statement.lineno))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        fault = str(error) or "nested too deeply"
        raise ConfigError(f"{source}: a configuration that is not readable as Python ({fault}). {advice}") from error
    return TrainingConfig(values, source)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand)
            return -value if type(value) in (int, float) else Unreadable(node.lineno)
        case ast.List(elts=items):
            return [_value(each) for each in items]
        case ast.Tuple(elts=items):
            return tuple(_value(each) for each in items)
        case ast.Dict(keys=keys, values=values):
            return _merged(
                [(key and _value(key), _value(value)) for key, value in zip(keys, values, strict=True)], node
            )
        case ast.Call(func=ast.Name(id="dict"), args=arguments, keywords=keywords) if len(arguments) < 2:
            # mmcv writes dict({'a.b': 1}) where keys are no identifiers.
            given = [(None, _value(each)) for each in arguments]
            return _merged(given + [(each.arg, _value(each.value)) for each in keywords], node)
        case ast.Call(func=ast.Name(id="range"), args=arguments, keywords=[]):
            return _range([_value(each) for each in arguments], node)
        case _:
            return Unreadable(node.lineno)


def _merged(items: list[tuple[Any, Any]], node: ast.expr) -> Any:
    """A dictionary from keys and values; the key None stands for all items of its value."""
    found: dict[Any, Any] = {}
    for key, value in items:
        if isinstance(key, str | int | float):
            found[key] = value
        elif key is None and isinstance(value, Mapping):
            found |= value
        else:
            return Unreadable(node.lineno)
    return found


def _range(bounds: list[Any], node: ast.expr) -> Any:
    """The numbers of a range; mmcv writes one as GPU ids."""
    if not all(type(bound) is int and abs(bound) <= 1000 for bound in bounds):
        return Unreadable(node.lineno)
    try:
        return tuple(range(*bounds))
    except (TypeError, ValueError):  # of no bound or more than three, or a step of 0
        return Unreadable(node.lineno)


def _unreadable_line(value: Any) -> int | None:
    """The line of the first unreadable value within a value."""
    if isinstance(value, Unreadable):
        return value.line
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((line for each in inner if (line := _unreadable_line(each)) is not None), None)
