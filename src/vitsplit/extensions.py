"""Tables of variations by name: those of this package, and those that other packages add as entry points.

An entry point is three lines of another package's ``pyproject.toml``::

    [project.entry-points."vitsplit.methods"]
    channel-scale = "toy_vitsplit.method:ChannelScaleConfig"
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.files import shown


class Table:
    """Names to objects, which are imported when they are asked for.

    Args:
        kind: What they are, for messages: ``method``.
        group: The group of entry points with further ones: ``vitsplit.methods``.
        built_in: Name to ``module:attribute``.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self.built_in = built_in
        self._loaded: dict[str, Any] = {}

    def names(self) -> tuple[str, ...]:
        """All names, those of this package first.

        Raises:
            ConfigError: Another package gives a name that is taken; names the package.
        """
        return (*self.built_in, *self._added)

    def load(self, name: str) -> Any:
        """What has this name.

        Raises:
            ConfigError: Nothing has it (close names are given), or it cannot be imported; names the package.
        """
        if name not in self._loaded:
            if name in self.built_in:
                module, _, attribute = self.built_in[name].partition(":")
                self._loaded[name] = getattr(importlib.import_module(module), attribute)
            elif name in self._added:
                self._loaded[name] = self._import(self._added[name])
            else:
                close = difflib.get_close_matches(name, self.names(), n=3)
                hint = f"Did you mean {' or '.join(close)}?" if close else f"There are: {', '.join(self.names())}."
                raise ConfigError(f"There is no {self.kind} {shown(name)}. {hint}")
        return self._loaded[name]

    @functools.cached_property
    def _added(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            if entry.name in self.built_in or (entry.name in found and entry.value != found[entry.name].value):
                other = "vitsplit itself" if entry.name in self.built_in else _package(found[entry.name])
                raise ConfigError(
                    f"The {self.kind} '{entry.name}' of {_package(entry)} has the name of one of {other}. "
                    "Rename it, or uninstall the package."
                )
            found[entry.name] = entry
        return found

    def _import(self, entry: EntryPoint) -> Any:
        try:
            loaded = entry.load()
        except Exception as error:  # whatever another package raises when it is imported
            raise ConfigError(
                f"The {self.kind} '{entry.name}' of {_package(entry)} cannot be loaded from {entry.value} "
                f"({type(error).__name__}: {error}). Update or uninstall that package."
            ) from error
        if getattr(loaded, "name", entry.name) != entry.name:
            raise ConfigError(
                f"The {self.kind} '{entry.name}' of {_package(entry)} calls itself '{loaded.name}'. Its entry point "
                "and its attribute `name` must be the same."
            )
        return loaded


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "another package"
