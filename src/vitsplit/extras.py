"""Packages of the extras, which are not installed by default."""

from __future__ import annotations

import importlib.util

from vitsplit.errors import ConfigError, VitsplitError


def require(what: str, *modules: str, extra: str, error: type[VitsplitError] = ConfigError) -> None:
    """Checks that modules of an extra can be imported, without importing them.

    Args:
        what: What needs them, at the beginning of the message: a flag, a file, or an activity.
        *modules: The modules.
        extra: The extra of vitsplit that installs them.
        error: The exception to raise.

    Raises:
        VitsplitError: One is not installed; the message has the command that installs it.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise error(f"{what} needs {' and '.join(missing)}. Install it: pip install 'vitsplit[{extra}]'.")
