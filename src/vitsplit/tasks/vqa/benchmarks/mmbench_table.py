"""MMBench's files: the table of questions and the Excel sheet of a submission."""

from __future__ import annotations

import base64
import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vitsplit.errors import DataError
from vitsplit.extras import require
from vitsplit.files import LARGE_FILE, read_text, shown, string
from vitsplit.tasks.vqa.benchmarks.files import LONGEST_TEXT, require_unique

LETTERS = "ABCD"
LARGEST_IMAGE = 64 << 20
"""Size limit in bytes of an encoded image."""
ROTATION_STEP = 1_000_000
"""Rotations have the index of their question plus a multiple of this."""
OMITTED_COLUMNS = ("hint", "category", "source", "image", "comment", "l2-category")
"""Columns that LLaVA-1.5 omits from the sheet."""
PREDICTION_COLUMN = 6
"""Position of its column of predictions."""


@dataclass(frozen=True, kw_only=True)
class MmBenchRow:
    """A question with its options in one order.

    Attributes:
        index: Index of the row.
        question: The question.
        hint: Text before the question, or empty.
        options: Two to four.
        answer: The correct letter, None if not public.
        category: Fine category.
        l2_category: Coarse category, or empty.
        image: Encoded image.
        cells: Cells for the sheet by column; empty for generated rotations.
    """

    index: int
    question: str
    hint: str
    options: tuple[str, ...]
    answer: str | None
    category: str
    l2_category: str
    image: bytes
    cells: Mapping[str, str] = field(default_factory=dict)

    @property
    def question_index(self) -> int:
        """The index of the question of which the row is a rotation."""
        return self.index % ROTATION_STEP


def read_rows(file: Path) -> list[MmBenchRow]:
    """Reads MMBench's table.

    Raises:
        DataError: The file cannot be read, a column, an image or an option is missing, or an index is not unique.
    """
    text = read_text(file, limit=LARGE_FILE, advice="Download the file again.")
    try:
        with _long_cells():
            table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    except csv.Error as error:
        raise DataError(f"{file}: cannot be read as a table ({error}). Download the file again.") from error
    needed = {"index", "question", "A", "B", "image"}
    if not table or not needed <= set(table[0]):
        raise DataError(f"{file}: no rows, or no columns {', '.join(sorted(needed))}. Use the official file.")
    for number, cells in enumerate(table, start=1):
        if any(cells[name] is None for name in needed) or None in cells:
            raise DataError(
                f"{file}: row {number} of the table has too few or too many cells. Download the file again."
            )
    require_unique((cells["index"] for cells in table), file)
    encoded = {cells["index"]: cells["image"] for cells in table}
    rows = [_row(cells, encoded, file) for cells in table]
    without = sum(row.answer is None for row in rows)
    if without not in (0, len(rows)):
        raise DataError(f"{file}: {without} of {len(rows)} rows have no answer. Download the file again.")
    return rows


def _row(cells: dict[str, str], encoded: Mapping[str, str], file: Path) -> MmBenchRow:
    index = cells["index"]
    if not re.fullmatch(r"[0-9]{1,18}", index):
        raise DataError(f"{file}: {shown(index)} is not an index. Download the file again.")
    options = []
    for letter in LETTERS:
        option = _cell(cells, letter)
        if not option:
            break
        options.append(option)
    answer = _cell(cells, "answer")
    if len(options) < 2 or (answer and answer not in tuple(LETTERS[: len(options)])):
        raise DataError(
            f"{file}: row {index} has {len(options)} options and the answer {shown(answer)}. Download the file again."
        )
    return MmBenchRow(
        index=int(index),
        question=string(cells["question"], f"{file}: the question of row {index}", LONGEST_TEXT),
        hint=_cell(cells, "hint"),
        options=tuple(options),
        answer=answer or None,
        category=_cell(cells, "category"),
        l2_category=_cell(cells, "l2-category"),
        image=_image(index, encoded, file),
        cells={name: value or "" for name, value in cells.items() if name is not None and name not in OMITTED_COLUMNS},
    )


def _cell(cells: Mapping[str, str], name: str) -> str:
    """The value of a cell; empty for ``nan`` and ``None``."""
    value = (cells.get(name) or "").strip()
    return "" if value.lower() in ("nan", "none") else value


def _image(index: str, encoded: Mapping[str, str], file: Path) -> bytes:
    """The image of a row; a number refers to the row with this index."""
    cell = encoded[index]
    if cell.isdecimal():
        cell = encoded.get(cell, "")
    try:
        image = base64.b64decode(cell, validate=True)
    except ValueError as error:
        raise DataError(
            f"{file}: the image of row {index} is not valid base64 ({error}). Download the file again."
        ) from error
    if not 0 < len(image) <= LARGEST_IMAGE:
        raise DataError(
            f"{file}: row {index} has no image or a too large one ({len(image) / 1e6:.0f} MB). Download the file again."
        )
    return image


@contextmanager
def _long_cells() -> Iterator[None]:
    """Raises the csv module's field size limit for images."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def require_openpyxl() -> None:
    """Raises ConfigError if openpyxl is not installed."""
    require("MMBench's submission", "openpyxl", extra="mmbench")


def write_sheet(path: Path, rows: Sequence[tuple[Mapping[str, str], str]]) -> None:
    """Writes cells and predictions as an Excel sheet with a header row.

    Args:
        path: The file.
        rows: Cells by column, and the prediction.
    """
    from openpyxl import Workbook
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    names = list(rows[0][0])
    columns = [*names[:PREDICTION_COLUMN], "prediction", *names[PREDICTION_COLUMN:]]
    book = Workbook()
    sheet = book.active
    for number, name in enumerate(columns, 1):
        sheet.cell(1, number, name)
    for line, (cells, prediction) in enumerate(rows, 2):
        for number, name in enumerate(columns, 1):
            text = prediction if name == "prediction" else cells[name]
            if name == "index":
                sheet.cell(line, number, int(text))
                continue
            # Control characters are invalid in Excel, and an answer starting with = must not become a formula.
            cell = sheet.cell(line, number, ILLEGAL_CHARACTERS_RE.sub("", text))
            cell.data_type = "s"
    book.save(path)
