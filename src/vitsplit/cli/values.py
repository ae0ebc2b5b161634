"""Values of flags that argparse and tyro cannot check by themselves."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vitsplit.errors import ConfigError, RunError
from vitsplit.files import shown
from vitsplit.ranges import MAX_SIDE, Range

NumberT = TypeVar("NumberT", int, float)
MAX_CLASSES = 255
"""The most classes: labels have 8 bits, and one value means ignored."""
MAX_COUNT = 10**9
"""The most of whatever is counted: images, questions, turns."""
TEXTS = frozenset({"--ask", "--answer-hint", "--system-prompt"})
"""Flags whose value may be empty, or says itself why not."""


def whole(least: int, most: int = MAX_COUNT) -> Callable[[str], int]:
    """The ``type`` of an argument that is a whole number from ``least`` to ``most``."""
    return _number(int, "a whole number", Range(least, most))


def real(allowed: Range) -> Callable[[str], float]:
    """The ``type`` of an argument that is a number in a range."""
    return _number(float, "a number", allowed)


def _number(kind: Callable[[str], NumberT], what: str, allowed: Range) -> Callable[[str], NumberT]:
    def read(text: str) -> NumberT:
        try:
            number = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {what} {allowed}, not {shown(text)}") from None
        if number not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {shown(text)}")
        return number

    return read


positive = whole(1)
"""A whole number of at least 1."""
side = whole(1, MAX_SIDE)
"""Pixels of a side of an image, or of a tile."""


def split_name(text: str) -> str:
    """The name of a split of a data set, which is also that of a folder."""
    if not text.strip() or text in (".", "..") or len(text) > 255 or set(text) & set("/\\\0"):
        raise argparse.ArgumentTypeError(f"must be the name of a split, such as val, not {shown(text)}")
    return text


def refuse_empty_words(argv: Sequence[str]) -> None:
    """Refuses an empty value, which as a path would be the present folder, and with a null character none at all.

    Raises:
        ConfigError: Names the flag in front of it.
    """
    for before, word in zip(["", *argv], argv, strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if (equals and not value and flag not in TEXTS) or "\0" in word:
            at = flag if flag.startswith("--") else f"the word after {shown(before)}" if before else "the first word"
            raise ConfigError(f"{at}: its value is empty, or holds a null character. Give one, or omit the flag.")


def writable(folder: Path) -> Path:
    """The folder, made if need be, in which a file can be written: asked before hours of work, and not after them.

    Raises:
        RunError: It cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"{folder}: nothing can be written there ({error.strerror or error}). Give another folder with --out."
        ) from error
    return folder
