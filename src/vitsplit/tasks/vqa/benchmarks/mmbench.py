"""MMBench: multiple choice that counts only if it is right in whatever order the options stand."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import LETTER, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import find_file, require_answers
from vitsplit.tasks.vqa.benchmarks.mmbench_table import (
    COPIES,
    LETTERS,
    MmBenchRow,
    read_rows,
    require_openpyxl,
    write_sheet,
)

CHINESE_LETTER = "请直接回答选项字母。"


@dataclass(frozen=True, kw_only=True)
class MmBench:
    """The questions of a split, each in all rotations of its options.

    A rotation is a row of the official file (index of the question plus a multiple of a million), or made here, with
    the same numbering, where the file has none.
    """

    file: Path
    rows: tuple[MmBenchRow, ...]
    how_to_answer: str = LETTER
    name: str = "mmbench"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts: hint, question, a line ``A. OPTION`` for each option, and how to answer."""
        return [
            BenchmarkQuestion(str(row.index), row.image, "\n".join([*_text(row), self.how_to_answer]))
            for row in self.rows
        ]

    def take(self, count: int) -> MmBench:
        """The first questions, in all their rotations."""
        kept = set([row.index for row in self.rows if row.index < COPIES][:count])
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.question_index in kept))

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Shares of right questions; empty for a split without answers.

        ``accuracy`` is circular: a question is right if it is right in every rotation. ``single_pass_accuracy`` asks
        the order of the file alone. Both are over all questions; by category and by ``l2-category`` the circular one.
        An answer that chooses no option is wrong (``unread``: their share; the official evaluation asks a language
        model what they mean).
        """
        self._require(answers)
        if self.rows[0].answer is None:
            return {}
        read = {row.index: read_option(answers[str(row.index)], row.options) for row in self.rows}
        right: dict[int, bool] = {}
        for row in self.rows:
            right[row.question_index] = right.get(row.question_index, True) and read[row.index] == row.answer
        first = [row for row in self.rows if row.index < COPIES]
        return {
            "accuracy": _mean(right.values()),
            "single_pass_accuracy": _mean(read[row.index] == row.answer for row in first),
            "by_l2_category": _by((row.l2_category, right[row.index]) for row in first),
            "by_category": _by((row.category, right[row.index]) for row in first),
            "unread": _mean(letter is None for letter in read.values()),
            "questions": len(first),
            "asked": len(self.rows),
        }

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``mmbench-submission.xlsx``: the rows of the official file with LLaVA-1.5's columns, for the server.

        Rotations that were made here are not in it.
        """
        self._require(answers)
        path = folder / f"{self.name}-submission.xlsx"
        write_sheet(path, [(row.cells, answers[str(row.index)]) for row in self.rows if row.cells])
        return (path,)

    def _require(self, answers: Mapping[str, str]) -> None:
        require_answers([str(row.index) for row in self.rows], answers, self.file)


def read_option(answer: str, options: Sequence[str]) -> str | None:
    """The letter that an answer chooses; None if that cannot be told.

    The one letter of an option that stands by itself in the answer (``B``, ``B.``, ``(B)``), except an ``A`` among more
    than three words, which may be an article; else the letter of the one option whose text is in the answer.
    """
    letters = LETTERS[: len(options)]
    words = [word.strip("().,:") for word in answer.split()]
    alone = {word for word in words if word in letters and word}
    if len(alone) == 1 and not (alone == {"A"} and len(words) > 3):
        return alone.pop()
    said = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in answer.lower()]
    return said[0] if len(said) == 1 else None


def open_mmbench(path: Path, *, chinese: bool = False) -> MmBench:
    """Reads MMBench.

    ::

        PATH/mmbench_dev_20230712.tsv   or another; columns index, question, hint, A, B, C, D, answer, category,
                                        l2-category, image (base64, or the index of the row that has it)

    Args:
        path: The folder with one such file, or the file.
        chinese: Ask for the letter in Chinese (``mmbench-cn``).

    Raises:
        ConfigError: openpyxl is not installed, so that no submission could be written.
        DataError: The file is missing or broken, or an index occurs twice.
    """
    require_openpyxl()
    patterns = ["mmbench_dev_cn_*.tsv", "*cn*.tsv"] if chinese else ["mmbench_dev_2*.tsv", "mmbench_dev_en_*.tsv"]
    file = find_file(path, [*patterns, "*.tsv"], what="table of questions")
    rows = read_rows(file)
    if all(row.index < COPIES for row in rows):
        rows = [copy for row in rows for copy in _rotations(row)]
    asked = {row.index for row in rows}
    lonely = [row for row in rows if row.question_index not in asked]
    if lonely:
        raise DataError(
            f"{file}: row {lonely[0].index} is a rotation of {lonely[0].question_index}, which is not in the file. "
            "Fetch the file again."
        )
    return MmBench(
        file=file,
        rows=tuple(rows),
        how_to_answer=CHINESE_LETTER if chinese else LETTER,
        name="mmbench-cn" if chinese else "mmbench",
    )


def _rotations(row: MmBenchRow) -> list[MmBenchRow]:
    """The row, and it with its options moved up by one, two, ... places, the first ones to the end."""
    rows = [row]
    for shift in range(1, len(row.options)):
        options = row.options[shift:] + row.options[:shift]
        answer = row.answer and LETTERS[(LETTERS.index(row.answer) - shift) % len(options)]
        index = row.index + shift * COPIES
        rows.append(dataclasses.replace(row, index=index, options=options, answer=answer, cells={}))
    return rows


def _text(row: MmBenchRow) -> list[str]:
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, row.options, strict=False)]
    return [*([row.hint] if row.hint else []), row.question, *options]


def _mean(hits: Iterable[bool]) -> float:
    hits = list(hits)
    return sum(hits) / len(hits)


def _by(pairs: Iterable[tuple[str, bool]]) -> dict[str, float]:
    groups = defaultdict(list)
    for name, hit in pairs:
        groups[name].append(hit)
    return {name: _mean(hits) for name, hits in sorted(groups.items())}
