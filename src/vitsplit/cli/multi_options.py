"""Flags for every setting of a joint run: those of all heads without a prefix, those of one head with its name."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from vitsplit.cli.options import config_from_cli, split_by_name
from vitsplit.errors import ConfigError
from vitsplit.tasks.multi.config import HEAD_NAMES, MultiConfig


def multi_config_from_cli(base: MultiConfig, argv: Sequence[str], *, prog: str = "vitsplit") -> MultiConfig:
    """The configuration with some settings changed: ``--lr 1e-4 --crop-size 448 448 --depth.lr 3e-4``.

    Args:
        base: Where the settings that are not named come from.
        argv: Flags and their values.
        prog: The command as it was called, for help and errors.

    Raises:
        ConfigError: There is no such flag or head, or one head is given what all share.
    """
    flags = split_by_name(argv, HEAD_NAMES)
    for name in flags.keys() - base.heads().keys() - {""}:
        raise ConfigError(f"--{name}.: this run has no {name} head. Add one with --task {name}=FOLDER.")
    return base.changed(
        lambda view: config_from_cli(view, flags.get("", []), prog=prog),
        lambda name, head: config_from_cli(head, flags.get(name, []), prog=prog, prefix=f"{name}."),
    )


def print_settings(base: MultiConfig, *, prog: str) -> None:
    """Prints every flag with its value: those of all heads, then those of each."""
    name, head = next(iter(base.heads().items()))
    print(f"\nsettings of all heads, with the values of {name}; --{name}.lr and the like change those of one head:\n")
    _print_help(base.view(head), prog)
    for name, head in base.heads().items():
        print(f"\nsettings of the {name} head, to be written --{name}.SETTING:\n")
        _print_help(head, f"{prog} --{name}.")


def _print_help(settings: Any, prog: str) -> None:
    with contextlib.suppress(SystemExit):
        config_from_cli(settings, ["--help"], prog=prog)
