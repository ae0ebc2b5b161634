"""Helpers for command-line arguments before they are parsed."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence

logger = logging.getLogger("vitsplit")


def with_current_names(argv: Sequence[str], former: Mapping[str, str]) -> list[str]:
    """Replaces flags of earlier versions, each with a warning.

    Args:
        argv: Flags and their values.
        former: Mapping from former to current field names.
    """
    current = []
    for word in argv:
        flag, equals, value = word.partition("=")
        negation = "--no-" if flag.startswith("--no-") else "--"
        name = flag.removeprefix(negation).replace("-", "_")
        if flag.startswith("--") and name in former:
            new = negation + former[name].replace("_", "-")
            logger.warning("%s is now called %s; the old name will be removed in the next version", flag, new)
            word = new + equals + value
        current.append(word)
    return current


def split_by_name(argv: Sequence[str], names: Container[str] | None = None) -> dict[str, list[str]]:
    """Splits flags and their values by prefix (``--depth.lr``), which is removed; ``""``: without prefix.

    Args:
        argv: Flags and their values.
        names: Allowed prefixes; None: any.

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


def leading_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments before the first flag."""
    return list(argv[: next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))])


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of a flag; None if it is not given."""
    return next(reversed(values_of(argv, flag)), None)


def values_of(argv: Sequence[str], flag: str) -> list[str]:
    """The values of a flag that can be repeated."""
    found: list[str] = []
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == flag:
            found += [value] if equals else argv[index + 1 : index + 2]
    return found


def list_value_of(argv: Sequence[str], flag: str) -> list[str]:
    """The values of a flag with a variable number of values."""
    if flag not in argv:
        return []
    return leading_arguments(argv[argv.index(flag) + 1 :])
