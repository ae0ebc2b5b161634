"""Inputs of a cluster: images in folders and lists, in Parquet files, and in the tar files of WebDataset.

An input is identified by its ``id``, and read where it is predicted: inputs travel as text, not as images.
"""

from __future__ import annotations

import functools
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from vitsplit.cluster.predictor import IMAGE_COLUMNS, to_image
from vitsplit.data.decoding import IMAGE_SUFFIXES, MAX_IMAGE_BYTES
from vitsplit.data.images import read_image
from vitsplit.errors import DataError, ImageTooLargeError
from vitsplit.files import open_regular, read_text, shown
from vitsplit.inference.inputs import UNWRITABLE, find_inputs

LIST_BYTES = 1 << 32
"""Limit of the size of a list file."""


class Item(NamedTuple):
    """An image.

    Attributes:
        id: Identifies it among all inputs.
        source: The file.
        column: Column of a Parquet file.
        first: Row group of a Parquet file, or offset in a tar file in bytes.
        second: Row in the row group, or size in bytes.
    """

    id: str
    source: str
    column: str = ""
    first: int = -1
    second: int = -1

    def read(self) -> Tensor:
        """Reads the image, ``image_CHW`` uint8.

        Raises:
            DataError: It cannot be read.
        """
        if self.first < 0:
            return read_image(self.source)
        if not self.column:
            return to_image(self._read_from_tar(), self.id)
        with _one_reader:
            column = _row_group(self.source, self.first, self.column)
        cell = column[self.second].as_py()
        return to_image(cell, self.id, Path(self.source).parent)

    def _read_from_tar(self) -> bytes:
        if self.second > MAX_IMAGE_BYTES:
            raise ImageTooLargeError(
                f"{self.id}: {self.second / 1e6:.0f} MB, limit {MAX_IMAGE_BYTES / 1e6:.0f} MB. Split it into tiles."
            )
        with open_regular(self.source) as file:
            try:
                file.seek(self.first)
                return file.read(self.second)
            except OSError as error:
                raise DataError(f"{self.source}: {self.id} cannot be read ({error}). Copy the file again.") from error


def find_items(words: Sequence[str], out: Path, column: str | None = None) -> list[Item]:
    """Finds the images of the arguments.

    Args:
        words: Images, folders of images, lists (``.txt``, one path per line, relative to the list), Parquet files of
            paths or bytes, and tar files (WebDataset).
        out: The output folder, in which no images are searched.
        column: Column of the images in Parquet files; None: the first of ``IMAGE_COLUMNS``.

    Raises:
        DataError: A file is missing, empty or invalid, two images have one id, or an id is null, has control
            characters or is not UTF-8.
    """
    found: list[Item] = []
    plain: list[str] = []
    for word in words:
        suffix = Path(word).suffix.lower()
        if suffix == ".txt":
            found += _from_list(Path(word))
        elif suffix == ".parquet":
            found += _from_parquet(Path(word), column)
        elif suffix == ".tar":
            found += _from_tar(Path(word))
        else:
            plain.append(word)
    for each in find_inputs(plain, out) if plain else ():
        if each.is_video:
            raise DataError(
                f"{each.path}: videos cannot be written to a table. Use `vitsplit predict` without --engine."
            )
        found.append(Item(f"{each.name}{each.path.suffix}", str(each.path.absolute())))
    seen: dict[str, str] = {}
    for item in found:
        if UNWRITABLE.search(item.id):
            raise DataError(
                f"{shown(item.source, 200)}: the id {shown(item.id)} has control characters or is not UTF-8. Rename "
                "the image."
            )
        if item.id in seen:
            raise DataError(f"{item.source} and {seen[item.id]} have two images with the id {item.id}. Rename one.")
        seen[item.id] = item.source
    return found


def _from_list(file: Path) -> Iterator[Item]:
    lines = read_text(file, limit=LIST_BYTES, advice="Give a list with one path per line.").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{file}: the list is empty. Give one path per line.")
    for name in names:
        yield Item(name, str(file.parent.absolute() / name))


def _from_tar(file: Path) -> Iterator[Item]:
    """Images of an uncompressed tar file by their places, without reading them."""
    found = False
    with open_regular(file) as content:
        try:
            with tarfile.open(fileobj=content, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.sparse and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                        found = True
                        yield Item(
                            f"{file.name}/{member.name}", str(file.absolute()), "", member.offset_data, member.size
                        )
                    tar.members = []  # type: ignore[attr-defined]  # otherwise all headers stay in memory
        except tarfile.TarError as error:
            raise DataError(f"{file}: not an uncompressed tar file ({error}). Copy it again, or unpack it.") from error
    if not found:
        raise DataError(f"{file}: no images found. Give a tar file with images.")


def _from_parquet(file: Path, column: str | None) -> Iterator[Item]:
    with _open_parquet(file) as table:
        schema = table.schema_arrow
        column = column or next((name for name in IMAGE_COLUMNS if name in schema.names), None)
        if column is None or column not in schema.names:
            raise DataError(
                f"{file} has no column {column or ' or '.join(IMAGE_COLUMNS)} (columns: {', '.join(schema.names)}). "
                "Name the column of the images with --image-column."
            )
        kind = schema.field(column).type
        is_path = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (is_path or pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"{file}: the column {column} is {kind}, not string, binary or a struct of bytes and path. Name the "
                "column of the images with --image-column."
            )
        wanted = ["id"] * ("id" in schema.names) + [column] * is_path
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            values = table.read_row_group(group, columns=wanted).to_pydict() if wanted else {}
            for row in range(rows):
                name = str(values["id"][row]) if "id" in values else f"{file.name}#{group}/{row}"
                if "id" in values and values["id"][row] is None:
                    raise DataError(f"{file}: row {row} of row group {group}: id is null. Remove the row.")
                if not is_path:
                    yield Item(name, str(file.absolute()), column, group, row)
                    continue
                path = values[column][row]
                if path is None:
                    raise DataError(f"{file}: row {row} of row group {group}: {column} is null. Remove the row.")
                yield Item(name if "id" in values else path, str(file.parent.absolute() / path))


def _open_parquet(file: str | Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(str(file))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a readable Parquet file ({error}). Copy it again.") from error


_one_reader = threading.Lock()
"""Threads that need the same row group wait for the one that reads it."""


@functools.lru_cache(maxsize=2)
def _row_group(file: str, group: int, column: str) -> Any:
    """The column of a row group; the last ones stay in memory, as neighboring rows follow each other."""
    with _open_parquet(file) as table:
        try:
            return table.read_row_group(group, columns=[column]).column(column)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: row group {group} cannot be read ({error}). Copy the file again.") from error
