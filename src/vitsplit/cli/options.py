"""Flags for every setting of a configuration, made from its dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from vitsplit.engine.config import TrainConfig
from vitsplit.engine.heads import changed
from vitsplit.engine.override import warn_of_another_method, with_method
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.methods import METHODS
from vitsplit.ranges import check_ranges

SettingsT = TypeVar("SettingsT")

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)


def config_from_cli(base: TrainConfig, argv: Sequence[str], *, prog: str = "vitsplit", prefix: str = "") -> TrainConfig:
    """The configuration with some settings changed by flags: ``--lr 1e-4 --crop-size 448 448 --depth.lr 3e-4``.

    Every field is one flag in kebab case, whatever dataclass it is in; help texts are the fields' docstrings. A flag is
    that of all heads, or with a head's name of one. With ``--help`` all flags are printed with the values of ``base``,
    and the process ends with status 0; a value of a wrong type ends it with status 2.

    Args:
        base: Where the settings that are not named come from.
        argv: Flags and their values.
        prog: The command as it was called, for help and errors.
        prefix: What stood before the flags' names and was taken off, such as ``full.``, for errors.

    Raises:
        ConfigError: There is no such flag (close ones are given), a value has no flag, or it is out of its range.

    A flag that only other methods have is told in the log, and not used.
    """
    flags = split_by_name(argv, base.heads)
    shared = flags.pop("", [])
    return changed(
        base,
        lambda flat: _read(flat, shared, prog, prefix),
        lambda name, head: _read(head, flags[name], prog, f"{prefix}{name}.") if name in flags else head,
    )


def print_settings(base: TrainConfig, *, prog: str) -> None:
    """Prints every flag with its value: those of all heads, then those of each."""
    name, *_ = base.heads
    print(f"\nsettings of all heads, with the values of {name}; --{name}.lr and the like change those of one head:\n")
    _print_help(base.flat(name), prog)
    for name, head in base.heads.items():
        print(f"\nsettings of the {name} head, to be written --{name}.SETTING:\n")
        _print_help(head, f"{prog} --{name}.")


def _print_help(settings: Any, prog: str) -> None:
    with contextlib.suppress(SystemExit):
        _read(settings, ["--help"], prog, "")


def _read(settings: SettingsT, argv: Sequence[str], prog: str, prefix: str) -> SettingsT:
    """Settings of a head, alone or beside those that it shares, with those changed that flags name."""
    settings, rest = _with_method(settings, argv)
    method: str = settings.method.name  # type: ignore[attr-defined]
    kind: Any = type(settings)[type(settings.task)]  # type: ignore[index,attr-defined]
    about = f"With --method {method}; each of {', '.join(METHODS.names())} has settings of its own."
    read, unknown = tyro.cli(
        kind, default=settings, args=rest, return_unknown_args=True, config=_STYLE, prog=prog, description=about
    )
    if unknown:
        shared, of_others = split_by_method(settings, rest, METHODS.names())
        if not of_others:
            raise ConfigError(_unknown(unknown, settings, prefix))
        for flag in dict.fromkeys(word for words in of_others.values() for word in words if word.startswith("--")):
            warn_of_another_method(flag[2:].partition("=")[0], method)
        return _read(settings, shared, prog, prefix)
    check_ranges(read, prefix=prefix)
    result: SettingsT = read
    return result


def _with_method(base: SettingsT, argv: Sequence[str]) -> tuple[SettingsT, list[str]]:
    """The configuration with the method that the last ``--method`` names, and the other words."""
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, name = word.partition("=")
        if flag != "--method":
            rest.append(word)
            continue
        name = name if equals else next(words, "")
        if name not in METHODS.names():
            raise ConfigError(f"--method must be one of {', '.join(METHODS.names())}, not {shown(name)}.")
        base = with_method(base, name)
    return base, rest


def split_by_method(base: Any, argv: Sequence[str], methods: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Flags and their values: those of a configuration, and by method those that others of the methods alone have.

    Args:
        base: The configuration, of one method.
        argv: Flags and their values.
        methods: Names of methods that are compared.
    """
    known = {
        name: set(flag_names(with_method(base, name))) for name in dict.fromkeys(methods) if name in METHODS.names()
    }
    own, shared = set(flag_names(base)), list[str]()
    by_method: dict[str, list[str]] = {}
    chosen = [shared]
    for word in argv:
        if word.startswith("--"):
            flag = word.partition("=")[0].replace("_", "-")
            others = [name for name, flags in known.items() if flag in flags and flag not in own]
            chosen = [by_method.setdefault(name, []) for name in others] or [shared]
        for words in chosen:
            words.append(word)
    return shared, by_method


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
    if "." in flag:
        return f"There is no flag {flag}: this run has no head of that name."
    close = difflib.get_close_matches(flag.replace("_", "-"), ["--method", *flag_names(base)], n=3)
    hint = f"Did you mean {' or '.join(_prefixed(name, prefix) for name in close)}? " if close else ""
    of = f" with --method {base.method.name}" if base.method.name != "vitsplit" else ""
    return f"There is no flag {_prefixed(flag, prefix)}. {hint}--help{of} lists all flags."


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
