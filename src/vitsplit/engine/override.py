"""Changing settings by their bare name: every field of a head and of what it shares has a name of its own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitsplit.engine.config import TrainConfig
from vitsplit.engine.heads import changed
from vitsplit.engine.serialise import from_dict, to_dict
from vitsplit.errors import ConfigError

SettingsT = TypeVar("SettingsT")


def override(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with some fields changed, such as ``{"steps": 100, "crop_size": (448, 448)}``.

    Args:
        config: The configuration.
        settings: Name to value, for all heads; those of one head stand under its name, as in
            ``{"lr": 1e-4, "depth": {"lr": 3e-4}}``.

    Raises:
        ConfigError: There is no such field (close names are given), or the value has the wrong type.
    """
    if not settings:
        return config
    own = {name: value for name, value in settings.items() if name in config.heads and isinstance(value, Mapping)}
    shared = {name: value for name, value in settings.items() if name not in own}
    return changed(
        config,
        lambda flat: _set(flat, shared, config),
        lambda name, head: _set(head, own.get(name, {}), config),
    )


def changed_settings(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """The settings that ``override`` makes the one configuration the other with, of one head."""
    ((name, _),) = before.heads.items()
    old, new = before.flat(name), after.flat(name)
    pairs = {each: (_value(old, place, each), _value(new, place, each)) for place, each in _places(old)}
    return {each: value for each, (former, value) in pairs.items() if former != value}


def _set(flat: SettingsT, settings: Mapping[str, Any], config: TrainConfig) -> SettingsT:
    if not settings:
        return flat
    values = to_dict(flat)
    places = {name: place for place, name in _places(flat)}
    for name, value in settings.items():
        if name not in places:
            close = difflib.get_close_matches(name, places, n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Settings: {', '.join(sorted(places))}."
            heads = f" Heads: {', '.join(config.heads)}." if isinstance(value, Mapping) else ""
            raise ConfigError(f"There is no setting '{name}'. {hint}{heads}")
        inner = values
        for step in places[name]:
            inner = inner[step]
        inner[name] = str(value) if isinstance(value, Path) else value
    result: SettingsT = from_dict(type(flat)[type(flat.task)], values, "settings")  # type: ignore[index,attr-defined]
    return result


def _value(config: Any, place: tuple[str, ...], name: str) -> Any:
    for step in place:
        config = getattr(config, step)
    return getattr(config, name)


def _places(config: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf field, as the path to the dataclass that holds it and its name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _places(value, (*prefix, field.name))
        else:
            yield prefix, field.name
