"""Changing settings by their bare name: every field of the nested configuration has a name of its own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitsplit.errors import ConfigError
from vitsplit.training.config import TrainConfig
from vitsplit.training.serialise import from_dict, to_dict

ConfigT = TypeVar("ConfigT", bound=TrainConfig[Any])


def override(config: ConfigT, settings: Mapping[str, Any]) -> ConfigT:
    """The configuration with some fields changed, such as ``{"steps": 100, "crop_size": (448, 448)}``.

    Raises:
        ConfigError: There is no such field (close names are given), or the value has the wrong type.
    """
    if not settings:
        return config
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
    return from_dict(TrainConfig[type(config.task)], values, "settings")  # type: ignore[misc]


def _places(config: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every leaf field, as the path to the dataclass that holds it and its name."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _places(value, (*prefix, field.name))
        else:
            yield prefix, field.name
