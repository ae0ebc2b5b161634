"""What a command line names: runs first, then images, folders of them, and videos."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitsplit.bundle import find_bundles
from vitsplit.data.images import IMAGE_SUFFIXES
from vitsplit.errors import BundleError, ConfigError, DataError
from vitsplit.files import exists, shown

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})
"""Files that are taken for videos."""
_UNWRITABLE = re.compile("[\ud800-\udfff\x00-\x1f\x7f]")
"""Control characters, and what Python makes of bytes that are not UTF-8: no log or screen could show such a name."""


@dataclass(frozen=True)
class Input:
    """A file to predict.

    Attributes:
        path: The file.
        name: What the names of its results begin with; holds the folders under the one that was named.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def split_runs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs that come first, and the rest.

    Raises:
        BundleError: The first word is no run.
        ConfigError: Nothing follows the runs, or a run follows the images.
    """
    find_bundles(words[0])
    runs = [words[0], *itertools.takewhile(_is_run, words[1:])]
    rest = list(words[len(runs) :])
    if not rest:
        raise ConfigError(f"{words[-1]} is a run; after the runs name images, folders of them, or videos.")
    for word in rest:
        if _is_run(word):
            raise ConfigError(f"{word} is a run, and stands after {rest[0]}: name all runs first, then the images.")
    return runs, rest


def _is_run(word: str) -> bool:
    try:
        find_bundles(word)
    except BundleError:
        # A run without a bundle yet is no folder of images: `find_bundles` says what it lacks.
        if (Path(word) / "config.json").is_file():
            raise
        return False
    return True


def find_inputs(words: Sequence[str | Path], out: Path | None) -> list[Input]:
    """Files, and the images and videos in folders, each with a name of its own.

    What lies in ``out`` (None: nothing is written) is left out, so that results are not predicted the next time; so is
    what is hidden (names that begin with a dot).

    Raises:
        DataError: A file or folder is not there, a folder holds nothing, ``out`` is one of the folders, or two files
            would have the same name, or one's has control characters or is not UTF-8.
    """
    found = [item for word in words for item in _of_word(Path(word), out and out.resolve())]
    taken: dict[str, Path] = {}
    for item in found:
        if _UNWRITABLE.search(item.name):
            raise DataError(
                f"{shown(str(item.path), 200)}: its name has control characters or is not UTF-8. Rename the file."
            )
        if item.name in taken:
            raise DataError(
                f"{item.path} and {taken[item.name]} would both be written as '{item.name}'. "
                "Rename one of them, or predict them into two folders."
            )
        taken[item.name] = item.path
    return found


def _of_word(path: Path, out: Path | None) -> Iterator[Input]:
    if not exists(path):
        raise DataError(f"{path}: there is no such file or folder, nor a run of that name. Check the path.")
    if not path.is_dir():
        yield Input(path, path.stem)
        return
    if path.resolve() == out:
        raise DataError(f"{path} is the folder of the images and --out: results would be taken for images. Choose two.")
    wanted = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    # Whatever is no folder is an input: that a link leads nowhere, or a pipe is no image, is said where it is read.
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in wanted and not file.is_dir()]
    inside = [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(path).parts) and not _is_below(file, out)
    ]
    if not inside:
        raise DataError(f"{path}: no images in this folder. Name image files, or a folder that holds some.")
    for file in inside:
        yield Input(file, str(file.relative_to(path).with_suffix("")))


def _is_below(file: Path, out: Path | None) -> bool:
    return out is not None and file.resolve().is_relative_to(out)
