"""Reading the benchmarks' files so that every gap ends in one message that names the file and the question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vitsplit.data.folders import first
from vitsplit.errors import DataError
from vitsplit.files import LARGE_FILE, inside, is_file, read_json, read_json_lines, shown, string, whole_number

FETCH, OFFICIAL = "Fetch the file again.", "Give the official file, or mend the entry."
LONGEST_TEXT = 1 << 20
"""Characters: the most of a question, an answer or a prompt."""
LARGEST_NUMBER = 2**63 - 1


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


def read_object(file: Path, key: str | None = None) -> Any:
    """The object in a JSON file, or the list under one of its keys.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    content = read_json(file, limit=LARGE_FILE, advice=FETCH)
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds {shown(content)}, not an object. {OFFICIAL}")
    if key is None:
        return content
    if not isinstance(content.get(key), list):
        raise DataError(f"{file}: has no list '{key}'. {OFFICIAL}")
    return content[key]


def read_list(file: Path) -> list[Any]:
    """The list in a JSON file, which has something in it.

    Raises:
        DataError: The file cannot be read, or holds something else.
    """
    content = read_json(file, limit=LARGE_FILE, advice=FETCH)
    if not isinstance(content, list) or not content:
        raise DataError(f"{file}: holds {shown(content)}, not a list of questions. {OFFICIAL}")
    return content


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects in a file of JSON lines, each with where it stands (``line 3``); empty lines are left out.

    Raises:
        DataError: The file cannot be read or has no lines, or a line is no JSON object.
    """
    rows = [(f"line {number}", row) for number, row in read_json_lines(file)]
    if not rows:
        raise DataError(f"{file}: has no lines. {FETCH}")
    return rows


Kind = Literal["text", "id", "number", "list", "object", "any"]
"""What a value is: an id is a text, or a whole number that stands for one; numbers are whole and not negative."""


def need(row: Any, keys: Mapping[str, Kind], file: Path, where: str) -> list[Any]:
    """The values of keys that an entry must have, in their order; ids as texts.

    Raises:
        DataError: The entry is no object, or one of them is missing, null or of another kind; the message says where.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{file}: {where} is {shown(row)}, not an object. {OFFICIAL}")
    missing = [key for key in keys if row.get(key) is None]
    if missing:
        raise DataError(f"{file}: {where} has no '{missing[0]}'. {OFFICIAL}")
    return [_checked(row[key], kind, f"{file}: '{key}' of {where}") for key, kind in keys.items()]


def need_texts(values: Sequence[Any], file: Path, where: str) -> tuple[str, ...]:
    """A list's values, which are texts.

    Raises:
        DataError: One is none.
    """
    return tuple(string(value, f"{file}: a value of {where}", LONGEST_TEXT, advice=OFFICIAL) for value in values)


def optional_text(row: Mapping[str, Any], key: str, file: Path, where: str) -> str:
    """The text of a key that an entry may have; empty if it is missing or null.

    Raises:
        DataError: It is something else.
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
        DataError: None of the folders exists, a name leads out of them, or images are missing: counted, the first named
            with its question.
    """
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    if not there:
        raise DataError(f"{root}: no folder of images ({', '.join(folders)}). Copy the images there.")
    for where, name in names.items():
        inside(there[0], name, f"{file}: the image of question {where}")
    sample = next(iter(names.values()), "")
    folder = next((folder for folder in there if is_file(folder / sample)), there[0])
    exists = {name: is_file(folder / name) for name in set(names.values())}
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
