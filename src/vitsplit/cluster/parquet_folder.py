"""A folder of Parquet files to which several processes add, each row exactly once.

Rows are identified by their column ``id``; those in the folder are done. A process writes a file into a temporary
folder of the current command and renames it into place, so that there are complete files only. The next command
first renames that temporary folder, and then reads which rows are done: processes of a command that was killed can
no longer add files afterwards, even if they are still running on other machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitsplit.atomic_files import write_json, writing_to
from vitsplit.errors import RunError
from vitsplit.files import read_json
from vitsplit.folder_lock import hold_folder
from vitsplit.inference.prediction_log import made_by_others

MADE_BY = "_made_by.json"
"""Bundles and settings. Readers of Parquet folders skip names that begin with ``_`` or ``.``."""
STAGING = ".staging-"
_PART = re.compile(r"part-[0-9a-f]{24}\.parquet")
RETIRED = ".retired-"


@dataclass(frozen=True)
class Destination:
    """Where a process of the current command adds files; picklable.

    Attributes:
        folder: The folder.
        staging: The temporary folder of the command.
    """

    folder: Path
    staging: Path

    def part(self, ids: Sequence[str]) -> Path:
        """The file of some rows, whose name depends on their ids, so that a repeated task replaces its file."""
        digest = hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
        return self.folder / f"part-{digest[:24]}.parquet"

    def commit(self, table: pa.Table) -> Path:
        """Writes a file with rows, and moves it into place when it is complete and on the disk.

        Raises:
            RunError: It cannot be written, or a later command has taken over the folder.
        """
        target = self.part(table.column("id").to_pylist())
        written = self.staging / f"{uuid.uuid4().hex}.parquet"
        with writing_to(self.folder, "predictions"):
            with written.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            written.replace(target)
        return target


def read_done(folder: Path, made_by: Mapping[str, Any]) -> set[str]:
    """The ids of the rows without an error in the folder; none if it does not exist.

    Raises:
        RunError: The rows were made by other bundles, settings or programs, or a file cannot be read.
    """
    return _read_rows(folder, made_by)[0]


def _read_rows(folder: Path, made_by: Mapping[str, Any]) -> tuple[set[str], list[Path]]:
    """See ``read_done``; and the files with rows that have an error."""
    advice = "Remove it, or use another folder with --out."
    if not (folder / MADE_BY).exists():
        others = next(folder.glob("*.parquet"), None)
        if others is not None:
            raise RunError(f"{others}: not written by vitsplit: there is no {MADE_BY}. Use another folder with --out.")
        return set(), []
    found = read_json(folder / MADE_BY, error=RunError, advice=advice)
    if found != made_by:
        raise made_by_others(folder, found, made_by)
    done: set[str] = set()
    with_errors = []
    for part in _parts(folder):
        try:
            rows = pq.read_table(part, columns=["id", "error"])
            kept = _without_errors(rows)
        except (OSError, KeyError, pa.ArrowException) as error:
            raise RunError(f"{part}: cannot be read ({error}). {advice}") from error
        done.update(kept.column("id").to_pylist())
        if len(kept) < len(rows):
            with_errors.append(part)
    return done, with_errors


@contextmanager
def take_over(
    folder: Path, made_by: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[tuple[Destination, set[str]]]:
    """Locks the folder within the block; yields where to add files, and the ids of the rows that are done.

    Rows with an error are removed: their images are predicted again, as by the folder predictor.

    Args:
        folder: The folder; created if missing.
        made_by: JSON-compatible identification of bundles and settings.
        overwrite: Remove the rows in the folder.

    Raises:
        RunError: As ``read_done`` and ``hold_folder``.
    """
    with hold_folder(folder):
        with writing_to(folder, "predictions"):
            for each in [*folder.glob(f"{STAGING}*"), *folder.glob(f"{RETIRED}*")]:
                retired = each.rename(each.with_name(f"{RETIRED}{uuid.uuid4().hex}"))
                shutil.rmtree(retired, ignore_errors=True)
            if overwrite and (folder / MADE_BY).exists():
                for part in _parts(folder):
                    part.unlink()
                write_json(folder / MADE_BY, made_by)
            done, with_errors = _read_rows(folder, made_by)
            write_json(folder / MADE_BY, made_by)
            staging = folder / f"{STAGING}{uuid.uuid4().hex}"
            staging.mkdir()
            for part in with_errors:
                _remove_errors(part, staging)
        try:
            yield Destination(folder.resolve(), staging.resolve()), done
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _without_errors(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table.column("error")))


def _remove_errors(part: Path, staging: Path) -> None:
    """Removes the rows with an error from a file, whose images are predicted again."""
    kept = _without_errors(pq.read_table(part))
    if len(kept):
        pq.write_table(kept, staging / part.name, compression="zstd")
        (staging / part.name).replace(part)
    else:
        part.unlink()


def _parts(folder: Path) -> list[Path]:
    """The files of this program, and none of others."""
    return sorted(file for file in folder.glob("part-*.parquet") if _PART.fullmatch(file.name))
