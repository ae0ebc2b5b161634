"""Types of common flags, and checks of arguments that types cannot express."""

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
"""Labels have 8 bits, and one value means ignored."""
MAX_DIGITS = 400
"""Maximum number of digits of a number."""
MAY_BE_EMPTY = frozenset({"--ask", "--answer-hint", "--system-prompt"})
"""Flags whose value may be empty, or that are checked elsewhere."""

Switch = tyro.conf.FlagCreatePairsOff[bool]
"""A flag without a value and without a negation."""
Count = Annotated[int, Field(ge=1, le=10**9)]
"""A number of images, questions or rounds."""
Limit = Annotated[int, Field(ge=0, le=10**9)]
"""A limit; 0: unlimited."""
BatchSize = Annotated[int, Field(ge=1, le=2**16)]
"""A batch size."""
NumClasses = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
"""A number of classes."""
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
"""Name of a split of a data set, which is also a folder name."""


GraphRuntime = Annotated[Literal["onnx", "openvino"] | None, tyro.conf.arg(metavar="{onnx,openvino}")]
"""Runtime of an exported folder."""


class Loading(Settings):
    """Loading options of bundles."""

    weights: str | None = None
    """Weights of the backbone, if they cannot be downloaded or the run was trained with --weights."""
    language_weights: str | None = None
    """Folder of the language model, if the run was trained with --language-weights."""
    language_model: str | None = None
    """Name of the language model on the hub, if it is not one that vitsplit knows."""
    device: str | None = None
    """Device such as cpu or cuda:1; None: the first GPU, else the CPU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Precision; None: fp32 if the run was trained in fp32, else auto."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of ``vitsplit.load``."""
        return dict(vars(self))


def check_arguments(argv: Sequence[str]) -> None:
    """Rejects empty values (as a path, the current folder), null characters and numbers of excessive length.

    Raises:
        ConfigError: An argument is invalid; the message names the flag.
    """
    for before, word in zip(["", *argv], argv, strict=False):
        flag, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if (equals and not value and flag not in MAY_BE_EMPTY) or "\0" in word:
            place = f"the argument after {shown(before)}" if before else "the first argument"
            at = flag if flag.startswith("--") else place
            raise ConfigError(f"{at}: the value is empty or contains a null character. Give a value, or omit the flag.")
        if len(value) > MAX_DIGITS and value.isdigit():
            raise ConfigError(f"{flag}: a number of {len(value)} digits is too large.")


def make_writable(folder: Path) -> Path:
    """Creates a folder if missing, and checks that it is writable before a long computation.

    Raises:
        RunError: The folder cannot be created or is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} is not writable ({error.strerror or error}). Give another folder with --out."
        ) from error
    return folder
