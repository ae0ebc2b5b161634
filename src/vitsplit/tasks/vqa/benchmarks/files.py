"""Reading the benchmarks' files so that every gap ends in one message that names the file and the question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitsplit.data.folders import first
from vitsplit.errors import DataError


def root_of(path: Path) -> Path:
    """The folder that a benchmark's files are in: the path itself, or the folder of the file that was given."""
    return path if path.is_dir() else path.parent


def find_file(path: Path, patterns: Sequence[str], *, what: str) -> Path:
    """The one file that is meant.

    Args:
        path: The file itself, or a folder in which the patterns are looked for, in their order.
        patterns: Relative paths, with wildcards.
        what: What the file holds, for the error.

    Raises:
        DataError: No such file, or several of one pattern.
    """
    found = find_optional(path, patterns)
    if found is None:
        raise DataError(f"{path}: no {what} there ({', '.join(patterns)}). Check the path, or copy the file there.")
    return found


def find_optional(path: Path, patterns: Sequence[str]) -> Path | None:
    """As ``find_file``; None if there is no such file in the folder.

    Raises:
        DataError: The path does not exist, or several files match one pattern.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder. Check the path.")
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = first([str(file.relative_to(path)) for file in found])
            raise DataError(f"{path}: several files could be meant ({names}). Give the path of one of them.")
        if found:
            return found[0]
    return None


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: It cannot be read, is no JSON, or an object in it has a key twice.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}). Fetch the file again.") from error


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    known = dict(pairs)
    if len(known) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"'{twin}' occurs twice")
    return known


def read_object(file: Path, key: str | None = None) -> Any:
    """The object in a JSON file, or the list under one of its keys.

    Raises:
        DataError: The file holds something else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}, not an object. Give the official file.")
    if key is None:
        return content
    if not isinstance(content.get(key), list):
        raise DataError(f"{file}: has no list '{key}'. Give the official file.")
    return content[key]


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects in a file of JSON lines, each with where it stands (``line 3``); empty lines are left out.

    Raises:
        DataError: The file cannot be read, or a line is no JSON object.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}). Fetch the file again.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}: line {number} is no JSON ({error}). Mend or remove it.") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}: line {number} is no JSON object. Mend or remove it.")
        rows.append((f"line {number}", row))
    if not rows:
        raise DataError(f"{file}: has no lines. Fetch the file again.")
    return rows


def need(row: Mapping[str, Any], keys: Sequence[str], file: Path, where: str) -> list[Any]:
    """The values of keys that an entry must have.

    Raises:
        DataError: The entry is no object, or one of them is missing or null; the message says where.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{file}: {where} is no JSON object. Give the official file.")
    missing = [key for key in keys if row.get(key) is None]
    if missing:
        raise DataError(f"{file}: {where} has no '{missing[0]}'. Give the official file, or mend the entry.")
    return [row[key] for key in keys]


def require_unique(ids: Iterable[str], file: Path) -> None:
    """Raises DataError if an id occurs twice."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"{file}: id {name} occurs twice. Remove one of the entries.")
        seen.add(name)


def find_images(names: Mapping[str, str], root: Path, folders: Sequence[str], file: Path) -> dict[str, Path]:
    """The image files of questions.

    Args:
        names: Name of the image by id of the question.
        root: Where the folders are looked for.
        folders: Where the images may be; the first that holds the first image is taken. ``.`` is ``root``.
        file: The file of questions, for the error.

    Raises:
        DataError: None of the folders exists, or images are missing: counted, the first named with its question.
    """
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    if not there:
        raise DataError(f"{root}: no folder of images ({', '.join(folders)}). Copy the images there.")
    sample = next(iter(names.values()), "")
    folder = next((folder for folder in there if (folder / sample).is_file()), there[0])
    exists = {name: (folder / name).is_file() for name in set(names.values())}
    missing = [(name, where) for where, name in names.items() if not exists[name]]
    if missing:
        name, where = missing[0]
        raise DataError(
            f"{file}: {len(missing)} of {len(names)} questions have no image in {folder}, such as {name} "
            f"(question {where}). Copy the missing images there."
        )
    return {where: folder / name for where, name in names.items()}


def require_answers(ids: Iterable[str], answers: Mapping[str, str], file: Path) -> None:
    """Raises DataError if questions have no answer: counted, the first named."""
    ids = list(ids)
    missing = [name for name in ids if name not in answers]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(ids)} questions have no answer ({first(missing)}). "
            "Run the evaluation again: it goes on where it stopped."
        )
