"""Changing settings by their bare name: every field of the nested configuration has a name of its own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitsplit.engine.config import TrainConfig
from vitsplit.engine.serialise import from_dict, to_dict
from vitsplit.errors import ConfigError
from vitsplit.tasks.multi.config import HEAD_NAMES, MultiConfig

ConfigT = TypeVar("ConfigT")


def override(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """The configuration with some fields changed, such as ``{"steps": 100, "crop_size": (448, 448)}``.

    Args:
        config: Of a run of one task, of a joint run, or of one of its heads.
        settings: Name to value. In a joint run they are those of all heads; those of one stand under its name, as in
            ``{"lr": 1e-4, "depth": {"lr": 3e-4}}``.

    Raises:
        ConfigError: There is no such field (close names are given), or the value has the wrong type.
    """
    if not settings:
        return config
    if isinstance(config, MultiConfig):
        return _override_multi(config, settings)  # type: ignore[return-value]  # the same type as it was given
    values = to_dict(config)
    places = {name: place for place, name in _places(config)}
    for name, value in settings.items():
        if name not in places:
            close = difflib.get_close_matches(name, places, n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Settings: {', '.join(sorted(places))}."
            raise ConfigError(f"There is no setting '{name}'. {hint}")
        inner = values
        for step in places[name]:
            inner = inner[step]
        inner[name] = str(value) if isinstance(value, Path) else value
    changed: ConfigT = from_dict(type(config)[type(config.task)], values, "settings")  # type: ignore[index,attr-defined]
    return changed


def changed_settings(before: TrainConfig[Any], after: TrainConfig[Any]) -> dict[str, Any]:
    """The settings that ``override`` makes the one configuration the other with, of runs of one task."""
    pairs = {name: (_value(before, place, name), _value(after, place, name)) for place, name in _places(before)}
    return {name: new for name, (old, new) in pairs.items() if old != new}


def _value(config: Any, place: tuple[str, ...], name: str) -> Any:
    for step in place:
        config = getattr(config, step)
    return getattr(config, name)


def _override_multi(config: MultiConfig, settings: Mapping[str, Any]) -> MultiConfig:
    own = {name: value for name, value in settings.items() if name in HEAD_NAMES}
    shared = {name: value for name, value in settings.items() if name not in HEAD_NAMES}
    for name in own.keys() - config.heads().keys():
        raise ConfigError(f"{name}={own[name]}: this run has no {name} head, only {', '.join(config.heads())}.")
    return config.changed(
        lambda view: override(view, shared),
        lambda name, head: override(head, own.get(name, {})),
    )


def _places(config: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf field, as the path to the dataclass that holds it and its name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _places(value, (*prefix, field.name))
        else:
            yield prefix, field.name
