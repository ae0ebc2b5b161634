"""Flags for every setting of a configuration, made from its dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Container, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from vitsplit.errors import ConfigError
from vitsplit.ranges import check_ranges

ConfigT = TypeVar("ConfigT")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)


def config_from_cli(base: ConfigT, argv: Sequence[str], *, prog: str = "vitsplit", prefix: str = "") -> ConfigT:
    """The configuration with some settings changed by flags: ``--lr 1e-4 --crop-size 448 448 --no-task-head``.

    Every field is one flag in kebab case, whatever dataclass it is in; help texts are the fields' docstrings. With
    ``--help`` all flags are printed with the values of ``base``, and the process ends with status 0; a value of a wrong
    type ends it with status 2.

    Args:
        base: Where the settings that are not named come from: of a run of one task, or of one head of a joint run.
        argv: Flags and their values.
        prog: The command as it was called, for help and errors.
        prefix: What stood before the flags' names and was taken off, such as ``depth.``, for errors.

    Raises:
        ConfigError: There is no such flag (close ones are given), a value has no flag, or it is out of its range.
    """
    kind: Any = type(base)[type(base.task)]  # type: ignore[index,attr-defined]
    config, unknown = tyro.cli(
        kind, default=base, args=list(argv), return_unknown_args=True, config=_STYLE, prog=prog, description=""
    )
    if unknown:
        raise ConfigError(_unknown(unknown, base, prefix))
    check_ranges(config, prefix=prefix)
    settings: ConfigT = config
    return settings


def split_by_name(argv: Sequence[str], names: Container[str] | None = None) -> dict[str, list[str]]:
    """Flags and their values by the name that stands before them with a dot, without it; ``""`` for those without one.

    Args:
        argv: Flags and their values.
        names: What counts as a name; None: whatever stands there.

    Example:
        >>> split_by_name(["--lr", "1e-4", "--depth.lr", "3e-4", "--depth.no-test-flip"])
        {'': ['--lr', '1e-4'], 'depth': ['--lr', '3e-4', '--no-test-flip']}
    """
    found: dict[str, list[str]] = {}
    current = ""
    for argument in argv:
        if argument.startswith("--"):
            name, dot, setting = argument.removeprefix("--").partition(".")
            # A dot may also stand in a value: --weights=file.pth
            is_name = bool(dot) and "=" not in name and (names is None or name in names)
            current, argument = (name, f"--{setting}") if is_name else ("", argument)
        found.setdefault(current, []).append(argument)
    return found


def _unknown(arguments: Sequence[str], base: Any, prefix: str) -> str:
    flags = [argument for argument in arguments if argument.startswith("-")]
    if not flags:
        return f"'{' '.join(arguments)}' stands without a flag. Settings are given as --name value."
    flag = flags[0].partition("=")[0]
    if flag == "--device":
        return f"There is no flag {flag}: a run takes the first GPU. CUDA_VISIBLE_DEVICES=1 chooses another, '' none."
    close = difflib.get_close_matches(flag.replace("_", "-"), list(flag_names(base)), n=3)
    hint = f"Did you mean {' or '.join(_prefixed(name, prefix) for name in close)}? " if close else ""
    return f"There is no flag {_prefixed(flag, prefix)}. {hint}--help lists all flags."


def _prefixed(flag: str, prefix: str) -> str:
    name = flag.lstrip("-")
    return flag[: len(flag) - len(name)] + prefix + name


def flag_names(config: Any) -> Iterator[str]:
    """The flag of every setting; with its negation where it is a switch."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flag_names(value)
            continue
        name = field.name.replace("_", "-")
        yield f"--{name}"
        if isinstance(value, bool):
            yield f"--no-{name}"
