"""Whether the files that a stopped run was trained on are still those: names, sizes and times, and not a byte read."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vitsplit.atomic_files import json_text, write_text
from vitsplit.data.folders import preview
from vitsplit.errors import DataError, RunError
from vitsplit.files import LARGE_FILE, read_json, whole_number

Fingerprint = dict[str, tuple[int, int]]
"""Name of a file to its bytes and the second of its last change (since 1970), in the order of the samples."""

SAME_TIME = 1
"""Seconds that the time of a file may differ: archives and some file systems keep it to one or two."""
SHOWN = 3
THREADS, CHUNK = 16, 512
_LARGEST = 1 << 62


def fingerprint(files: Mapping[str, Path]) -> Fingerprint:
    """What is compared of the files of a data set, by their names in it.

    About a second for 100,000 files on a local disk; the waiting for a network is done by several threads.

    Raises:
        DataError: A file is not there.
    """
    names, paths = list(files), list(files.values())
    chunks = [paths[begin : begin + CHUNK] for begin in range(0, len(paths), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [state for states in pool.map(_states, chunks) for state in states]
    # A name of bytes that are no UTF-8 has no form in JSON.
    plain = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    return dict(zip(plain, found, strict=True))


def _states(paths: list[Path]) -> list[tuple[int, int]]:
    states = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Restore the file, or remove it from the set."
            ) from error
        states.append((status.st_size, int(status.st_mtime)))
    return states


def write_fingerprint(file: Path, present: Fingerprint) -> None:
    """Writes ``data.json``, a file a line.

    Raises:
        RunError: It could not be written.
    """
    rows = ",\n".join(f"{json_text(name)}: {json_text(list(state))}" for name, state in present.items())
    write_text(file, f"{{\n{rows}\n}}\n")


def read_fingerprint(file: Path) -> Fingerprint:
    """Reads ``data.json``.

    Raises:
        RunError: It cannot be read, or is no such file.
    """
    advice = "Delete it: the data are then not compared."
    saved = read_json(file, limit=LARGE_FILE, error=RunError, advice=advice)
    if not isinstance(saved, dict):
        raise RunError(f"{file}: not an object with files. {advice}")
    for name, state in saved.items():
        if not isinstance(state, list) or len(state) != 2:
            raise RunError(f"{file}: {name} must have two numbers, its bytes and its time. {advice}")
        for number in state:
            whole_number(number, f"{file}: {name}", -_LARGEST, _LARGEST, error=RunError, advice=advice)
    return {name: (state[0], state[1]) for name, state in saved.items()}


def changes(saved: Fingerprint, present: Fingerprint) -> str:
    """What of the files is not as it was, in words; empty where all is."""
    both = saved.keys() & present.keys()
    missing = [name for name in saved if name not in present]
    new = [name for name in present if name not in saved]
    resized = [name for name in present if name in both and saved[name][0] != present[name][0]]
    same_size = both - set(resized)
    touched = [name for name in present if name in same_size and abs(saved[name][1] - present[name][1]) > SAME_TIME]
    said = [
        f"{len(names)} {what} ({preview(names, SHOWN)})"
        for names, what in (
            (missing, "gone"),
            (new, "new"),
            (resized, "of another size"),
            (touched, "of the same size but changed at another time"),
        )
        if names
    ]
    if not said and list(saved) != list(present):
        place = next(place for place, pair in enumerate(zip(saved, present, strict=True)) if pair[0] != pair[1])
        return f"the same files in another order, from {list(present)[place]} on"
    only_times = touched and len(said) == 1
    note = ": nothing but times differs, as where files were copied without them" if only_times else ""
    return f"of {len(saved)} files {', '.join(said)}{note}" if said else ""
