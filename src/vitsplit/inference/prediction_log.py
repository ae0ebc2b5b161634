"""The log of a folder of predictions and their bundles: ``predictions.jsonl``.

The first line identifies bundles and settings; each further line is one finished input with its files. It is written
after its files, so that an interrupted command can be resumed.

Each shard has a log of its own, ``predictions-I-of-N.jsonl``, and a lock of its own, so that shards write into one
folder at the same time. The command without a shard locks all shards of the folder and merges their logs.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vitsplit.atomic_files import write_text
from vitsplit.bundle import CARD, WEIGHTS
from vitsplit.errors import RunError
from vitsplit.files import inside, is_file, read_json_lines, string, whole_number
from vitsplit.folder_lock import LOCK, hold_folder
from vitsplit.inference.inputs import Input
from vitsplit.inference.shard import Shard

LOG = "predictions.jsonl"
MAX_NAME_LENGTH = 4096
"""Length limit in characters of an input's name."""
MAX_INTEGER = 1 << 63
_SHARD_LOG = re.compile(r"predictions-([1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})\.jsonl")
_SHARD_LOCK = re.compile(re.escape(LOCK) + r"-([1-9][0-9]{0,8})-of-([1-9][0-9]{0,8})")


class PredictionLog:
    """The predictions in a folder, which must be locked: see ``open``.

    Args:
        folder: The folder.
        made_by: JSON-compatible identification of bundles (see ``bundle_ids``) and settings.
        overwrite: Predict everything again, and remove predictions of other bundles. Not for a shard.
        shard: The shard whose inputs are predicted; None: all inputs.
        merged: Shards whose logs are merged, which must be locked too.

    Raises:
        RunError: The folder has predictions of other bundles or settings, or of another number of shards, or its log
            cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        made_by: Mapping[str, Any],
        *,
        overwrite: bool = False,
        shard: Shard | None = None,
        merged: Sequence[Shard] = (),
    ) -> None:
        self.folder = folder
        self.overwrite = overwrite
        self._file = _log_file(folder, shard)
        self._staging = folder / f".partial{_suffix(shard)}"
        self._made_by = dict(made_by)
        self._merged = [_log_file(folder, each) for each in merged]
        if shard:
            _check_same_number(folder, shard)
        self._outdated: list[str] = []
        self._done: dict[str, dict[str, Any]] = {}
        self._own: dict[str, dict[str, Any]] = {}
        for file in [folder / LOG, self._file] if shard else [self._file, *self._merged]:
            header, *found = self._read(file) or [self._made_by]
            if header == self._made_by:
                rows = {row["name"]: row for row in found}
                self._done |= rows
                if file == self._file or shard is None:
                    self._own |= rows
            elif overwrite:
                self._outdated += [name for row in found for name in row["files"]]
            else:
                raise made_by_others(folder, header, made_by)

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, made_by: Mapping[str, Any], *, overwrite: bool = False, shard: Shard | None = None
    ) -> Iterator[PredictionLog]:
        """Creates the folder if missing, and locks it, or the shard, within the block (see ``hold_folder``).

        Raises:
            RunError: As ``PredictionLog``, or the folder cannot be created or written, or it or one of the shards to
                merge is locked by another process.
        """
        with ExitStack() as locks:
            locks.enter_context(hold_folder(folder, name=f"{LOCK}{_suffix(shard)}"))
            # Listed once: a shard that starts later is not locked, and therefore must not be merged.
            merged = [] if shard else _shards(folder)
            for each in merged:
                locks.enter_context(hold_folder(folder, name=f"{LOCK}{_suffix(each)}"))
            yield cls(folder, made_by, overwrite=overwrite, shard=shard, merged=merged)

    def begin(self) -> None:
        """Prepares the folder for writing.

        Raises:
            RunError: It cannot be written, or has unsafe links.
        """
        if self._staging.is_symlink():
            raise RunError(f"{self._staging} is a link. Remove it.")
        shutil.rmtree(self._staging, ignore_errors=True)
        # Check all files before removing any: links may lead out of the folder.
        outdated = [self.checked_path(file) for file in self._outdated]
        for file in outdated:
            if file.is_dir():
                raise RunError(f"{self._file} lists the folder {file} as a prediction. Correct or remove the line.")
        for file in outdated:
            file.unlink(missing_ok=True)
        # Rewritten, since an interrupted write may have left an incomplete last line.
        rows = (self._made_by, *self._own.values())
        write_text(self._file, "".join(json.dumps(row) + "\n" for row in rows))
        for log in self._merged:
            log.unlink(missing_ok=True)

    def checked_path(self, name: str) -> Path:
        """The path of a file to remove or overwrite, which must not be reached by a link."""
        advice = "Remove the link, or use another folder with --out."
        return inside(self.folder, name, str(self.folder), follow_links=False, error=RunError, advice=advice)

    def is_done(self, item: Input) -> bool:
        """Whether the item's results exist and the input file is unchanged."""
        return not self.overwrite and bool(self.files(item))

    def files(self, item: Input) -> list[Path]:
        """The item's results; none if one is missing or the input file has changed."""
        row = self._done.get(item.name)
        if row is None or (row["bytes"], row["modified_ns"]) != _file_state(item.path):
            return []
        files = [self.folder / file for file in row["files"]]
        return files if all(map(is_file, files)) else []

    def stage(self, item: Input, bundle: str = "") -> Path:
        """Temporary folder for an item's files, of all or one bundle."""
        digest = hashlib.sha256(item.name.encode()).hexdigest()[:16]
        return self._staging / digest / bundle

    def place(self, item: Input, files: Iterable[tuple[str, str, Path]]) -> list[Path]:
        """Moves an item's files from the temporary folder to their final paths.

        Args:
            item: The input.
            files: Tuples of bundle name, suffix after the item's name (``_mask.png``), and file. For equal suffixes,
                the bundle's name is inserted: ``NAME_depth_overlay.jpg``.

        Returns:
            Their new paths.
        """
        files = list(files)
        stem = Path(item.name).name
        target = self.checked_path((Path(item.name).parent / stem).as_posix()).parent
        target.mkdir(parents=True, exist_ok=True)
        count = Counter(ending for _, ending, _ in files)
        placed = [
            file.replace(target / (f"{stem}{ending}" if count[ending] == 1 else f"{stem}_{bundle}{ending}"))
            for bundle, ending, file in files
        ]
        shutil.rmtree(self.stage(item), ignore_errors=True)
        return placed

    def add(self, item: Input, files: list[Path]) -> None:
        """Records that an item is finished."""
        num_bytes, modified_ns = _file_state(item.path)
        row = {
            "name": item.name,
            "input": str(item.path).encode("utf-8", "backslashreplace").decode(),
            "bytes": num_bytes,
            "modified_ns": modified_ns,
            "files": [file.relative_to(self.folder).as_posix() for file in files],
        }
        with self._file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self._done[item.name] = row

    def close(self) -> None:
        """Removes the temporary folder."""
        shutil.rmtree(self._staging, ignore_errors=True)

    def _read(self, file: Path) -> list[dict[str, Any]]:
        """Reads the rows of a log; an incomplete last line is ignored."""
        if not file.exists():
            return []
        advice = "Correct or remove the line, or use another folder with --out."
        found = read_json_lines(file, error=RunError, advice=advice, may_end_early=True)
        for number, row in found:
            where = f"{file}: line {number}"
            if number == found[0][0]:
                bundles = row.get("bundles")
                if not isinstance(bundles, dict) or not all(isinstance(each, str) for each in bundles.values()):
                    raise RunError(f"{where} does not name the bundles. {advice}")
                continue
            string(row.get("name"), f"{where}: name", MAX_NAME_LENGTH, error=RunError, advice=advice)
            for name in ("bytes", "modified_ns"):
                value = row.get(name)
                whole_number(value, f"{where}: {name}", -MAX_INTEGER, MAX_INTEGER, error=RunError, advice=advice)
            if not isinstance(row.get("files"), list):
                raise RunError(f"{where}: files must be a list of names. {advice}")
            for name in row["files"]:
                inside(self.folder, name, where, error=RunError, advice=advice)
        return [row for _, row in found]


def bundle_ids(folders: Mapping[str, Path]) -> dict[str, str]:
    """Identification of bundles: SHA-256 of card and weights by name."""
    ids = {}
    for name, folder in folders.items():
        digest = hashlib.sha256()
        for file in (CARD, WEIGHTS):
            with (folder / file).open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        ids[name] = digest.hexdigest()
    return ids


def _suffix(shard: Shard | None) -> str:
    return "" if shard is None else f"-{shard.index}-of-{shard.count}"


def _log_file(folder: Path, shard: Shard | None) -> Path:
    return folder / f"{Path(LOG).stem}{_suffix(shard)}{Path(LOG).suffix}"


def _shards(folder: Path) -> list[Shard]:
    """The shards that have a log in a folder, or a lock only, because they load their model."""
    return list(dict.fromkeys(_named(folder, _SHARD_LOG) + _named(folder, _SHARD_LOCK)))


def _named(folder: Path, names: re.Pattern[str]) -> list[Shard]:
    """The shards of the files with such names."""
    found = map(names.fullmatch, sorted(file.name for file in folder.iterdir()))
    return [Shard(int(match[1]), int(match[2])) for match in found if match and int(match[1]) <= int(match[2])]


def _check_same_number(folder: Path, shard: Shard) -> None:
    """Shards of another number divide the inputs differently, and would predict many of them again."""
    for other in _named(folder, _SHARD_LOG):
        if other.count != shard.count:
            raise RunError(
                f"{folder} has predictions of {other.count} shards. Repeat the command with --shard I/{other.count}, "
                "or finish it without --shard, which merges them."
            )


def _file_state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def made_by_others(folder: Path, found: Mapping[str, Any], made_by: Mapping[str, Any]) -> RunError:
    """The error of a folder with predictions of other bundles or settings."""
    return RunError(
        f"{folder} has predictions of {_describe(found)}, not of {_describe(made_by)}. Use another folder with --out, "
        "or --overwrite to replace them."
    )


def _describe(made_by: Mapping[str, Any]) -> str:
    bundles = ", ".join(f"{name} ({digest[:8]})" for name, digest in made_by["bundles"].items())
    others = [f"{name} {value}" for name, value in made_by.items() if name != "bundles"]
    return ", ".join([bundles, *others])
