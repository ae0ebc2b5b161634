"""A new data set on disk: its folder appears when it is complete."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitsplit.errors import DataError


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Yields an empty folder beside ``root`` that becomes ``root`` when the block ends without error.

    Whatever an error, or a stop by the keyboard, leaves half-written is removed; what a kill leaves is hidden (its name
    begins with a dot) and goes the next time.

    Raises:
        DataError: There is something at ``root`` already; an empty folder does not count.
    """
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise DataError(f"{root} already exists and is not an empty folder. Remove it or name another one.")
    root = root.resolve()  # so that "." and links have a name and a place beside them
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if root.is_dir():
            root.rmdir()
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
