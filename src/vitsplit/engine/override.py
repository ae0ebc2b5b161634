"""Changing settings by their bare name: every field of a head and of what it shares has a name of its own."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitsplit.engine.config import TrainConfig
from vitsplit.engine.heads import changed
from vitsplit.engine.serialise import from_dict, to_dict
from vitsplit.errors import ConfigError
from vitsplit.methods import METHODS, MethodConfig

logger = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT")


def override(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with some fields changed, such as ``{"steps": 100, "crop_size": (448, 448)}``.

    Args:
        config: The configuration.
        settings: Name to value, for all heads; those of one head stand under its name, as in
            ``{"lr": 1e-4, "depth": {"lr": 3e-4}}``.

    Raises:
        ConfigError: There is no such field (close names are given), or the value has the wrong type.

    A setting that only other methods have is told in the log, and not used.
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
    changes: dict[str, Any] = {}
    if new.method.name != old.method.name:
        changes["method"] = new.method.name
        old = with_method(old, new.method.name)
    pairs = {each: (_value(old, place, each), _value(new, place, each)) for place, each in _places(old)}
    return changes | {each: value for each, (former, value) in pairs.items() if former != value}


def _set(flat: SettingsT, settings: Mapping[str, Any], config: TrainConfig) -> SettingsT:
    if not settings:
        return flat
    if "method" in settings:
        settings = dict(settings)
        flat = with_method(flat, settings.pop("method"))
    values = to_dict(flat)
    places = {name: place for place, name in _places(flat)}
    for name, value in settings.items():
        if name not in places and is_of_another_method(name):
            warn_of_another_method(name, flat.method.name)  # type: ignore[attr-defined]
            continue
        if name not in places:
            close = difflib.get_close_matches(name, places, n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else f"Settings: {', '.join(sorted(places))}, method."
            heads = f" Heads: {', '.join(config.heads)}." if isinstance(value, Mapping) else ""
            raise ConfigError(f"There is no setting '{name}'. {hint}{heads}")
        inner = values
        for step in places[name]:
            inner = inner[step]
        inner[name] = str(value) if isinstance(value, Path) else value
    result: SettingsT = from_dict(type(flat)[type(flat.task)], values, "settings")  # type: ignore[index,attr-defined]
    return result


def is_of_another_method(name: str) -> bool:
    """Whether any method has a setting of this name."""
    return any(name in {each.name for each in dataclasses.fields(METHODS.load(method))} for method in METHODS.names())


def warn_of_another_method(name: str, method: str) -> None:
    """Says that a setting is not used."""
    logger.warning("--%s is a setting of another method, and not used with --method %s", name.replace("_", "-"), method)


def with_method(config: SettingsT, name: str) -> SettingsT:
    """The configuration of a run or a head with the method of a name: as it is, or with that method's defaults.

    Raises:
        ConfigError: There is no such method.
    """
    if config.method.name == name:  # type: ignore[attr-defined]  # all of them have one
        return config
    return dataclasses.replace(config, method=MethodConfig.by_name(name)())  # type: ignore[type-var]


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
