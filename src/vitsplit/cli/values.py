"""Values of flags that several verbs have, and checks of values that their types cannot say."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, Field

from vitsplit.config import MAX_SIDE, Settings
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import shown

MAX_CLASSES = 255
"""The most classes: labels have 8 bits, and one value means ignored."""
LONGEST_NUMBER = 400
"""Digits: no number has more."""
TEXTS = frozenset({"--ask", "--answer-hint", "--system-prompt"})
"""Flags whose value may be empty, or says itself why not."""

Switch = tyro.conf.FlagCreatePairsOff[bool]
"""A flag without a value, and without its negation."""
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Of images, questions or turns."""
Limit = Annotated[int, Field(ge=0, le=10**9)]
"""The most of something; 0: all."""
BatchSize = Annotated[int, Field(ge=1, le=2**16)]
"""Images that are computed together."""
NumClasses = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
"""Of a segmentation or detection."""
ImageSize = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Annotated[int, Field(ge=1, le=MAX_SIDE)]],
    tyro.conf.arg(metavar="H W"),
]
"""Height and width in pixels."""


def _split_name(text: str) -> str:
    if not text.strip() or text in (".", "..") or len(text) > 255 or set(text) & set("/\\\0"):
        raise ValueError(f"must be the name of a split, such as val, not {shown(text)}.")
    return text


SplitName = Annotated[str, AfterValidator(_split_name)]
"""The name of a split of a data set, which is also that of a folder."""


class Loading(Settings):
    """How bundles are loaded."""

    weights: str | None = None
    """Weights of the backbone, where they cannot be downloaded or the run was trained with --weights."""
    language_weights: str | None = None
    """Folder of the language model, where the run was trained with --language-weights."""
    language_model: str | None = None
    """The language model's name, where it is not a known one and may be taken from the hub."""
    device: str | None = None
    """Where to compute; None: the first GPU, else the CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """None: fp32 if the run computed in it, else auto."""

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of ``vitsplit.load``."""
        return dict(vars(self))


def refuse_empty_words(argv: Sequence[str]) -> None:
    """Refuses an empty value, which as a path would be the present folder, a null character, and endless numbers.

    Raises:
        ConfigError: Names the flag in front of it.
    """
    for before, word in zip(["", *argv], argv, strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if (equals and not value and flag not in TEXTS) or "\0" in word:
            at = flag if flag.startswith("--") else f"the word after {shown(before)}" if before else "the first word"
            raise ConfigError(f"{at}: its value is empty, or holds a null character. Give one, or omit the flag.")
        if len(value) > LONGEST_NUMBER and value.isdigit():
            raise ConfigError(f"{flag}: a number of {len(value)} digits is too large.")


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
