"""Overrides of settings by field name, for all heads of a run or for one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from vitsplit import config as settings_base
from vitsplit.config_errors import flag_of
from vitsplit.heads import changed
from vitsplit.methods import METHODS, MethodConfig
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

SettingsT = TypeVar("SettingsT")


def override(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with some fields changed, such as ``{"steps": 100, "crop_size": (448, 448)}``.

    A setting that only other methods have is validated, and ignored with a warning in the log.

    Args:
        config: The configuration.
        settings: Name to value, for all heads; settings of one head are nested under its name, as in
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
        lambda flat: _override(flat, shared),
        lambda name, head: _override(head, own.get(name, {})),
    )


def changed_settings(before: TrainConfig, after: TrainConfig) -> dict[str, Any]:
    """The settings with which ``override`` turns ``before`` into ``after``; both have one head of the same name."""
    ((name, _),) = before.heads.items()
    old, new = before.flat(name), after.flat(name)
    changes = {} if new.method.name == old.method.name else {"method": new.method.name}
    return changes | settings_base.changed_settings(with_method(old, new.method.name), new)


def _override(flat: SettingsT, settings: Mapping[str, Any]) -> SettingsT:
    settings = dict(settings)
    if "method" in settings:
        flat = with_method(flat, settings.pop("method"))
    known = {setting.place[-1] for setting in settings_base.settings_of(flat)}
    for name in settings.keys() - known:
        methods = methods_with(name)
        if methods:
            value = settings.pop(name)
            for method in methods:
                settings_base.override(with_method(flat, method), {name: value})  # refuses a wrong value nevertheless
            warn_of_another_method(name, flat.method.name)  # type: ignore[attr-defined]
    return settings_base.override(flat, settings)


def methods_with(name: str) -> list[str]:
    """The methods that have a setting of this name."""
    return [
        method for method in METHODS.names() if name in {each.name for each in dataclasses.fields(METHODS.load(method))}
    ]


def warn_of_another_method(name: str, method: str) -> None:
    """Logs that a setting is ignored because the method does not have it."""
    logger.warning("%s is ignored: --method %s does not have this setting", flag_of(name), method)


def with_method(config: SettingsT, name: str) -> SettingsT:
    """The configuration with another method at its defaults; unchanged if it already has this method.

    Raises:
        ConfigError: There is no such method.
    """
    if config.method.name == name:  # type: ignore[attr-defined]  # all of them have one
        return config
    return dataclasses.replace(config, method=MethodConfig.by_name(name)())  # type: ignore[type-var]
