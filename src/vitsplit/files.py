"""Safe reading of untrusted files: any problem is reported as one clear error.

All text and JSON files of the package (class lists, annotations, bundle cards, configurations, states, logs) are read
here. A file must be a regular file (no pipe or device) in UTF-8 and within a size limit; JSON must conform to the
standard, without duplicate keys.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from vitsplit.errors import DataError, VitsplitError

SMALL_FILE = 16 << 20
"""Size limit in bytes of a card, a configuration, a state, or a list of classes or names."""
LARGE_FILE = 2 << 30
"""Size limit in bytes of a file of annotations, questions or log rows (COCO's largest has 0.45e9)."""
YAML_FILE = 256 << 10
"""Size limit in bytes of a YAML file, which is slow to parse; files of class names are far smaller."""
YAML_DEPTH = 20
"""Nesting limit of a YAML file."""
LONGEST_NAME = 1024
"""Length limit in characters of the name of a class, a file or a setting."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LARGE = re.compile(r"\d[eE]\+?\d{3}|\d{309}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Control characters, which names must not contain."""

ErrorType = type[VitsplitError]


def is_address(run: str | PurePath) -> bool:
    """Whether a RUN argument is an address on the Hugging Face hub (``hf://``), not a folder."""
    return (run.as_posix() if isinstance(run, PurePath) else run).startswith("hf:/")  # a Path has one slash


def read_text(
    path: str | Path, *, limit: int = SMALL_FILE, error: ErrorType = DataError, advice: str = "Replace the file."
) -> str:
    """The text of a file, with ``\\n`` at the end of every line and without a byte order mark.

    Args:
        path: The file.
        limit: Size limit in bytes.
        error: Exception type to raise.
        advice: The remedy: last sentence of the message.

    Raises:
        VitsplitError: Of type ``error``: the file does not exist, is not a regular file, not readable, too large, or
            not UTF-8.
    """
    content = read_bytes(path, limit=limit, error=error, advice=advice)
    try:
        text = content.decode("utf-8-sig")
    except MemoryError as fault:
        raise error(f"{path}: not enough memory. {advice}") from fault
    except UnicodeDecodeError as fault:
        raise error(
            f"{path}: not UTF-8 (byte {fault.start} is 0x{content[fault.start]:02x}). Save it as UTF-8. {advice}"
        ) from fault
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_bytes(
    path: str | Path, *, limit: int, error: ErrorType = DataError, advice: str = "Replace the file."
) -> bytes:
    """The bytes of a file; arguments and errors as in ``read_text``."""
    with open_regular(path, error=error, advice=advice) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = file.read(limit + 1) if size <= limit else b""
        except (OSError, MemoryError) as fault:
            raise error(f"{path}: cannot be read ({fault or 'not enough memory'}). {advice}") from fault
    if size > limit or len(content) > limit:
        raise error(f"{path}: larger than the limit of {limit / 1e6:g} MB. {advice}")
    return content


def open_regular(
    path: str | Path, *, error: ErrorType = DataError, advice: str = "Replace the file."
) -> BufferedReader:
    """Opens a regular file for reading; never blocks.

    Raises:
        VitsplitError: Of type ``error``: the file does not exist, is not a regular file, or not readable.
    """
    try:
        # A pipe without a writer would block here otherwise. Windows has no such flag.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as fault:
        raise error(f"{path}: file not found. Check the path.") from fault
    except (OSError, ValueError) as fault:  # ValueError: a null character in the path
        raise error(f"{path}: cannot be read ({fault}). {advice}") from fault
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path}: not a regular file. {advice}")
    return os.fdopen(descriptor, "rb")


def read_json(
    path: str | Path, *, limit: int = SMALL_FILE, error: ErrorType = DataError, advice: str = "Replace the file."
) -> Any:
    """The value in a JSON file; see ``read_text`` for the arguments and ``parse_json`` for the checks."""
    return parse_json(read_text(path, limit=limit, error=error, advice=advice), str(path), error=error, advice=advice)


def parse_json(text: str, where: str, *, error: ErrorType = DataError, advice: str = "Correct it.") -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        where: File and location in it, for the message.
        error: Exception type to raise.
        advice: The remedy: last sentence of the message.

    Raises:
        VitsplitError: Of type ``error``: invalid JSON (with line and column), NaN or infinity, a duplicate key,
            nesting too deep, a number too large, or an unpaired surrogate in a string.
    """
    try:
        # Checking every number is slow, so only where one could be too large for a float.
        parse_float = _finite if _LARGE.search(text) else None
        value = json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=parse_float
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as fault:
        raise error(
            f"{where}: not valid JSON ({fault.msg}, line {fault.lineno}, column {fault.colno}). {advice}"
        ) from fault
    except RecursionError as fault:
        raise error(f"{where}: nested too deeply. {advice}") from fault
    except MemoryError as fault:
        raise error(f"{where}: not enough memory. {advice}") from fault
    except UnicodeEncodeError as fault:
        raise error(f"{where}: unpaired surrogate (\\ud800 to \\udfff) in a string. {advice}") from fault
    except ValueError as fault:
        raise error(f"{where}: not valid JSON ({fault}). {advice}") from fault
    return value


def read_json_lines(
    path: str | Path,
    *,
    limit: int = LARGE_FILE,
    error: ErrorType = DataError,
    advice: str = "Correct or remove the line.",
    may_end_early: bool = False,
) -> list[tuple[int, dict[str, Any]]]:
    """The objects in a JSON Lines file, each with its line number (from 1); empty lines are skipped.

    Args:
        path: The file.
        limit: Size limit in bytes.
        error: Exception type to raise.
        advice: The remedy: last sentence of the message.
        may_end_early: Whether an incomplete last line (from an interrupted write) is ignored.

    Raises:
        VitsplitError: Of type ``error``: as ``read_text`` and ``parse_json``, or a line is not an object.
    """
    # Not splitlines, which also splits at characters that JSON allows inside strings.
    lines = read_text(path, limit=limit, error=error, advice=advice).split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"{path}: line {number}", error=error, advice=advice)
            if not isinstance(row, dict):
                raise error(f"{path}: line {number} holds {shown(row)}, not an object. {advice}")
        except error:
            # A complete last line ends with a line break, after which split returns an empty string.
            if may_end_early and number == len(lines):
                break
            raise
        rows.append((number, row))
    return rows


def read_yaml(
    path: str | Path, *, limit: int = YAML_FILE, error: ErrorType = DataError, advice: str = "Correct it."
) -> Any:
    """The value of a YAML file; arguments as in ``read_text``.

    Raises:
        VitsplitError: Of type ``error``: as ``read_text``, or invalid YAML, an alias (a few can expand to gigabytes),
            nesting too deep, a duplicate key, or a non-standard tag.
    """
    import yaml  # type: ignore[import-untyped]

    text = read_text(path, limit=limit, error=error, advice=advice)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ValueError("aliases and anchors (& and *) are not supported")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise ValueError("nested too deeply")
        return _construct_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as fault:
        raise error(f"{path}: not valid YAML ({' '.join(str(fault).split())[:300]}). {advice}") from fault


def _construct_yaml(text: str) -> Any:
    """The value of a YAML document without aliases."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        document = loader.get_single_node()
        nodes = [document]
        while nodes:
            node = nodes.pop()
            if isinstance(node, yaml.MappingNode):
                keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                if len(set(keys)) < len(keys):
                    raise ValueError(f"duplicate key in {shown([value for _, value in keys])}")
                nodes += [value for _, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                nodes += node.value
        return None if document is None else loader.construct_document(document)
    finally:
        loader.dispose()


def whole_number(
    value: Any, where: str, least: int, most: int, *, error: ErrorType = DataError, advice: str = "Correct it."
) -> int:
    """Returns the value if it is an ``int`` (no ``bool``) from ``least`` to ``most``, otherwise raises ``error``."""
    if type(value) is not int or not least <= value <= most:
        raise error(f"{where} must be an integer from {least} to {most}, not {shown(value)}. {advice}")
    return value


def real_number(
    value: Any,
    where: str,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    error: ErrorType = DataError,
    advice: str = "Correct it.",
) -> float:
    """Returns a finite number from ``least`` to ``most`` as ``float``, otherwise raises ``error``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and least <= number <= most:
            return number
    bounds = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
    raise error(f"{where} must be a finite number{bounds}, not {shown(value)}. {advice}")


def string(
    value: Any, where: str, longest: int = LONGEST_NAME, *, error: ErrorType = DataError, advice: str = "Correct it."
) -> str:
    """Returns the value if it is a ``str`` of at most ``longest`` characters, otherwise raises ``error``."""
    if not isinstance(value, str):
        raise error(f"{where} must be a string, not {shown(value)}. {advice}")
    if len(value) > longest:
        raise error(f"{where} has {len(value)} characters, more than the limit of {longest}. {advice}")
    return value


def inside(
    folder: Path,
    name: Any,
    where: str,
    *,
    follow_links: bool = True,
    error: ErrorType = DataError,
    advice: str = "Name a file inside that folder.",
) -> Path:
    """Resolves an untrusted relative path, which must lie inside ``folder``.

    Args:
        folder: The folder.
        name: The untrusted value, of any type.
        where: File and location that the name was read from, for the message.
        follow_links: Whether symbolic links may lead out of the folder. False for files that are written or removed.
        error: Exception type to raise.
        advice: The remedy: last sentence of the message.

    Raises:
        VitsplitError: Of type ``error``: ``name`` is not a string, is empty, has control characters, is absolute or
            outside of the folder.
    """
    text = string(name, where, error=error, advice=advice)
    parts = PurePosixPath(text.replace("\\", "/") if os.name == "nt" else text).parts
    depth = lowest = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        lowest = min(lowest, depth)
    is_absolute = PurePosixPath(text).is_absolute() or (os.name == "nt" and bool(PureWindowsPath(text).anchor))
    if not parts or CONTROL.search(text) or is_absolute or lowest < 0:
        raise error(f"{where}: {shown(text)} is not a path inside {folder}. {advice}")
    path = folder / text
    if not follow_links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise error(f"{where}: {shown(text)} is a link out of {folder}. {advice}")
    return path


def exists(path: Path) -> bool:
    """Whether the path exists; False, not an error, for an invalid name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether the path is a regular file; see ``exists``."""
    return exists(path) and path.is_file()


def shown(value: Any, length: int = 60) -> str:
    """Formats a value for a message: strings quoted and escaped, long values truncated."""
    if isinstance(value, str):
        return repr(value) if len(value) <= length else f"{value[:length]!r}..."
    if isinstance(value, list | tuple):
        items = ", ".join("..." if isinstance(item, list | tuple | dict) else shown(item, 20) for item in value[:6])
        return f"[{items}{', ...' if len(value) > 6 else ''}]"
    if isinstance(value, dict):
        return f"an object with {', '.join(shown(key, 20) for key in list(value)[:6])}" if value else "{}"
    if type(value) is int and value.bit_length() > 256:  # slow or impossible to print
        return f"a number of about {int(value.bit_length() * math.log10(2))} digits"
    return json.dumps(value) if value is None or isinstance(value, bool | float) else str(value)[:length]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object; raises ValueError for a duplicate key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {shown(key)}")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text, 20)} is too large")
    return number
