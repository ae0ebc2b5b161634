"""Paths in the cards of bundles: a card that is read opens no files, and one that is written names no folders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitsplit.config import settings_of, with_value
from vitsplit.train_config import TrainConfig


def without_paths(config: TrainConfig) -> tuple[TrainConfig, dict[str, str]]:
    """The configuration of a card that is read without paths out of the bundle, and these paths by flag."""
    paths = {}
    for setting in list(settings_of(config)):
        if setting.opens and setting.value is not None and setting.opens.leads_out(setting.value):
            if isinstance(setting.value, bool):
                config = with_value(config, setting.place, False)
                continue
            paths[setting.flag] = setting.value
            bare = setting.opens.without_folders(setting.value) if setting.opens.or_name else None
            config = with_value(config, setting.place, bare)
    return config, paths


def without_folders(contents: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """The contents of a card without folders of the machine that wrote it, which can name its user.

    Args:
        contents: The contents of ``head.json``, of this or an earlier version.
        config: Their configuration, with its paths.
    """
    names = {
        setting.value: setting.opens.without_folders(setting.value)
        for setting in settings_of(config)
        if setting.opens and isinstance(setting.value, str)
    }
    # Everywhere, since descriptions repeat settings (the language model).
    return {key: _replaced(value, names) for key, value in contents.items()}


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value
