"""Inputs of the command line: runs, followed by images, folders and videos."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitsplit.bundle import find_bundles
from vitsplit.data.decoding import IMAGE_SUFFIXES
from vitsplit.errors import BundleError, ConfigError, DataError
from vitsplit.files import exists, is_address, shown
from vitsplit.runtime.card import is_export

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})
"""Suffixes of videos."""
UNWRITABLE = re.compile("[\ud800-\udfff\x00-\x1f\x7f]")
"""Control characters, and surrogates for bytes that are not UTF-8, which cannot be printed."""


@dataclass(frozen=True)
class Input:
    """A file to predict.

    Attributes:
        path: The file.
        name: Prefix of its results' names, including subfolders of the input folder.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def split_runs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into leading runs and inputs.

    Raises:
        BundleError: The first argument is neither a run nor an exported folder.
        ConfigError: There are no inputs, or a run follows the inputs.
    """
    if not _is_run(words[0]):
        find_bundles(words[0])  # raises
    runs = [words[0], *itertools.takewhile(_is_run, words[1:])]
    rest = list(words[len(runs) :])
    if not rest:
        raise ConfigError(f"No inputs after the run {words[-1]}. Give images, folders of images, or videos.")
    for word in rest:
        if _is_run(word):
            raise ConfigError(f"The run {word} follows the input {rest[0]}. Give all runs first, then the inputs.")
    return runs, rest


def _is_run(word: str) -> bool:
    if is_export(word) or is_address(word):
        return True
    try:
        find_bundles(word)
    except BundleError:
        # A run without a bundle: raise the error of `find_bundles`.
        if (Path(word) / "config.json").is_file():
            raise
        return False
    return True


def find_inputs(words: Sequence[str | Path], out: Path | None) -> list[Input]:
    """Finds input files, and images and videos in folders, with unique names.

    Files in ``out`` (None: nothing is written) are skipped, so that results are not predicted again; so are hidden
    files.

    Raises:
        DataError: A file or folder is missing, a folder is empty, ``out`` is an input folder, or a name is not unique,
            has control characters or is not UTF-8.
    """
    found = [item for word in words for item in _find_files(Path(word), out and out.resolve())]
    taken: dict[str, Path] = {}
    for item in found:
        if UNWRITABLE.search(item.name):
            raise DataError(
                f"{shown(str(item.path), 200)}: the name has control characters or is not UTF-8. Rename the file."
            )
        if item.name in taken:
            raise DataError(
                f"{item.path} and {taken[item.name]} have the same result name '{item.name}'. Rename one of them, or "
                "use two output folders."
            )
        taken[item.name] = item.path
    return found


def _find_files(path: Path, out: Path | None) -> Iterator[Input]:
    if not exists(path):
        raise DataError(f"{path}: file, folder or run not found. Check the path.")
    if not path.is_dir():
        yield Input(path, path.stem)
        return
    if path.resolve() == out:
        raise DataError(f"{path} is both the input folder and --out. Use different folders.")
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    # Broken links and irregular files are inputs too: their error is raised on reading.
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in wanted and not file.is_dir()]
    inside = [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(path).parts) and not _is_below(file, out)
    ]
    if not inside:
        raise DataError(f"{path}: no images found. Give image files, or a folder of images.")
    for file in inside:
        yield Input(file, str(file.relative_to(path).with_suffix("")))


def _is_below(file: Path, out: Path | None) -> bool:
    return out is not None and file.resolve().is_relative_to(out)
