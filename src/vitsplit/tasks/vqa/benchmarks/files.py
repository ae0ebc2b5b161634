"""Reading of benchmark files; errors name the file and the question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vitsplit.data.folders import preview
from vitsplit.errors import DataError
from vitsplit.files import LARGE_FILE, inside, is_file, read_json, read_json_lines, shown, string, whole_number

DOWNLOAD, OFFICIAL = "Download the file again.", "Use the official file, or correct the entry."
LONGEST_TEXT = 1 << 20
"""Length limit in characters of a question, an answer or a prompt."""
LARGEST_NUMBER = 2**63 - 1


def root_of(path: Path) -> Path:
    """The folder of a benchmark's files: the path itself, or the folder of a file."""
    return path if path.is_dir() else path.parent


def find_file(path: Path, patterns: Sequence[str], *, what: str) -> Path:
    """Finds a file.

    Args:
        path: The file itself, or a folder to search for the patterns, in order.
        patterns: Relative paths, with wildcards.
        what: Description of the file, for the error.

    Raises:
        DataError: No file or several files match a pattern.
    """
    found = find_optional(path, patterns)
    if found is None:
        raise DataError(f"{path}: no {what} found ({', '.join(patterns)}). Check the path, or add the file.")
    return found


def find_optional(path: Path, patterns: Sequence[str]) -> Path | None:
    """As ``find_file``; None if no file matches.

    Raises:
        DataError: The path does not exist, or several files match one pattern.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path}: file or folder not found. Check the path.")
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if len(found) > 1:
            names = preview([str(file.relative_to(path)) for file in found])
            raise DataError(f"{path}: several files match ({names}). Give the path of one of them.")
        if found:
            return found[0]
    return None


def read_object(file: Path, key: str | None = None) -> Any:
    """Reads the object in a JSON file, or the list under one of its keys.

    Raises:
        DataError: The file cannot be read, or has another type.
    """
    content = read_json(file, limit=LARGE_FILE, advice=DOWNLOAD)
    if not isinstance(content, dict):
        raise DataError(f"{file}: contains {shown(content)}, not an object. {OFFICIAL}")
    if key is None:
        return content
    if not isinstance(content.get(key), list):
        raise DataError(f"{file}: has no list '{key}'. {OFFICIAL}")
    return content[key]


def read_list(file: Path) -> list[Any]:
    """Reads a non-empty list in a JSON file.

    Raises:
        DataError: The file cannot be read, or has another type.
    """
    content = read_json(file, limit=LARGE_FILE, advice=DOWNLOAD)
    if not isinstance(content, list) or not content:
        raise DataError(f"{file}: contains {shown(content)}, not a list of questions. {OFFICIAL}")
    return content


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Reads the objects in a JSON Lines file, each with its location (``line 3``); empty lines are skipped.

    Raises:
        DataError: The file cannot be read or is empty, or a line is not a JSON object.
    """
    rows = [(f"line {number}", row) for number, row in read_json_lines(file)]
    if not rows:
        raise DataError(f"{file}: the file is empty. {DOWNLOAD}")
    return rows


Kind = Literal["text", "id", "number", "list", "object", "any"]
"""Expected type of a value: an id is a string or an integer; numbers are non-negative integers."""


def require_fields(row: Any, keys: Mapping[str, Kind], file: Path, where: str) -> list[Any]:
    """The values of required keys of an entry, in order; ids as strings.

    Raises:
        DataError: The entry is not an object, or a value is missing, null or of another type.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{file}: {where} is {shown(row)}, not an object. {OFFICIAL}")
    missing = [key for key in keys if row.get(key) is None]
    if missing:
        raise DataError(f"{file}: {where} has no '{missing[0]}'. {OFFICIAL}")
    return [_checked(row[key], kind, f"{file}: '{key}' of {where}") for key, kind in keys.items()]


def require_strings(values: Sequence[Any], file: Path, where: str) -> tuple[str, ...]:
    """Checks that a list has strings only.

    Raises:
        DataError: A value is not a string.
    """
    return tuple(string(value, f"{file}: a value of {where}", LONGEST_TEXT, advice=OFFICIAL) for value in values)


def optional_text(row: Mapping[str, Any], key: str, file: Path, where: str) -> str:
    """The string of an optional key; empty if missing or null.

    Raises:
        DataError: The value is not a string.
    """
    value = row.get(key)
    return "" if value is None else string(value, f"{file}: '{key}' of {where}", LONGEST_TEXT, advice=OFFICIAL)


def _checked(value: Any, kind: Kind, where: str) -> Any:
    match kind:
        case "text":
            return string(value, where, LONGEST_TEXT, advice=OFFICIAL)
        case "number":
            return whole_number(value, where, 0, LARGEST_NUMBER, advice=OFFICIAL)
        case "id":
            if isinstance(value, str):
                return string(value, where, advice=OFFICIAL)
            return str(whole_number(value, where, 0, LARGEST_NUMBER, advice=OFFICIAL))
        case "list" | "object":
            if not isinstance(value, list if kind == "list" else dict):
                raise DataError(
                    f"{where} is {shown(value)}, not {'a list' if kind == 'list' else 'an object'}. {OFFICIAL}"
                )
    return value


def require_unique(ids: Iterable[str], file: Path) -> None:
    """Raises DataError if an id is not unique."""
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"{file}: id {name} is not unique. Remove one of the entries.")
        seen.add(name)


def find_images(names: Mapping[str, str], root: Path, folders: Sequence[str], file: Path) -> dict[str, Path]:
    """Finds the image files of questions.

    Args:
        names: Image name by question id.
        root: Folder that ``folders`` are relative to.
        folders: Possible folders of the images; the first one with the first image is used.
        file: The file of questions, for errors.

    Raises:
        DataError: None of the folders exists, a name leads out of them, or images are missing.
    """
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    if not there:
        raise DataError(f"{root}: no folder of images found ({', '.join(folders)}). Add the images.")
    for where, name in names.items():
        inside(there[0], name, f"{file}: the image of question {where}")
    sample = next(iter(names.values()), "")
    folder = next((folder for folder in there if is_file(folder / sample)), there[0])
    exists = {name: is_file(folder / name) for name in set(names.values())}
    missing = [(name, where) for where, name in names.items() if not exists[name]]
    if missing:
        name, where = missing[0]
        raise DataError(
            f"{file}: {len(missing)} of {len(names)} questions have no image in {folder}, such as {name} (question "
            f"{where}). Add the missing images."
        )
    return {where: folder / name for where, name in names.items()}


def require_answers(ids: Iterable[str], answers: Mapping[str, str], file: Path) -> None:
    """Raises DataError if questions have no answer."""
    ids = list(ids)
    missing = [name for name in ids if name not in answers]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(ids)} questions have no answer ({preview(missing)}). Run the evaluation "
            "again to resume it."
        )
