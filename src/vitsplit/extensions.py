"""Registries of implementations by name: built-in ones, and those of other packages (entry points).

Another package registers one in its ``pyproject.toml``::

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
    """A mapping of names to objects, which are imported on first use.

    Args:
        kind: Kind of the objects, for messages: ``method``.
        group: Entry point group of other packages: ``vitsplit.methods``.
        built_in: Name to ``module:attribute``.
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = group
        self.built_in = built_in
        self._loaded: dict[str, Any] = {}

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first.

        Raises:
            ConfigError: Another package registers an existing name; the message has the package.
        """
        return (*self.built_in, *self._added)

    def load(self, name: str) -> Any:
        """The object with this name.

        Raises:
            ConfigError: The name is unknown (similar ones are suggested), or the object cannot be imported; the message
                has the package.
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
                    f"The {self.kind} '{entry.name}' of {_package(entry)} has the same name as one of {other}. "
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
                f"The {self.kind} '{entry.name}' of {_package(entry)} has the attribute name = '{loaded.name}'. The "
                "name of the entry point and the attribute must be the same."
            )
        return loaded


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "another package"
