"""Atomic replacement of files and folders: after a crash there is either the old or the new version."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vitsplit.errors import RunError


@contextmanager
def writing_to(folder: Path, what: str) -> Iterator[None]:
    """Converts errors of writing into a folder, such as a full disk, to ``RunError``.

    Raises:
        RunError: An ``OSError`` occurred in the block; the message names the folder.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: {what} could not be written: {error}. Free disk space or make it writable, and repeat the "
            "command, or choose another folder with --out."
        ) from error


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces ``path`` atomically, synced to disk, if the block ends without error.

    Raises:
        RunError: It could not be written, such as on a full disk; ``path`` is unchanged.
    """
    new, old = _new(path), _old(path)
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        for item in [*new.rglob("*"), new]:
            _sync(item)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        _put_in_place(new, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} could not be written: {error}. Any earlier version is unchanged.") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _put_in_place(new: Path, path: Path) -> None:
    try:
        new.rename(path)
    except OSError:
        if _old(path).exists():
            _old(path).rename(path)
        raise


def recover_folder(path: Path) -> None:
    """Cleans up after a process was killed in ``replace_folder``: removes partial folders, restores the old one."""
    shutil.rmtree(_new(path), ignore_errors=True)
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    shutil.rmtree(_old(path), ignore_errors=True)


def is_leftover(item: Path, path: Path) -> bool:
    """Whether ``item`` is a temporary file or folder of ``path``, left by a killed process."""
    return item in (_new(path), _old(path))


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        RunError: It could not be written; ``path`` is unchanged.
    """
    new = _new(path)
    try:
        new.write_text(text, encoding="utf-8")
        _sync(new)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise RunError(f"{path} could not be written: {error}. Any earlier version is unchanged.") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, see ``json_text`` and ``write_text``."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """Serializes a value as standard JSON: non-finite numbers become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and does not need to sync them
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
