"""Creates the folder of a data set atomically."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitsplit.errors import DataError


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Yields a temporary folder next to ``root`` that is renamed to ``root`` if the block succeeds.

    The temporary folder is removed after an error. After a kill it remains as a hidden folder, which the next call
    removes.

    Raises:
        DataError: ``root`` exists and is not an empty folder.
    """
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise DataError(f"{root} already exists and is not an empty folder. Remove it or name another one.")
    root = root.resolve()  # "." and links have no name to rename to
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
