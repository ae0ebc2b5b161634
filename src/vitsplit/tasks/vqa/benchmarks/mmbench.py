"""MMBench: multiple choice with circular evaluation (all rotations of the options must be answered correctly)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import LETTER, Benchmark, BenchmarkQuestion, mean, mean_by
from vitsplit.tasks.vqa.benchmarks.files import find_file
from vitsplit.tasks.vqa.benchmarks.mmbench_table import (
    LETTERS,
    ROTATION_STEP,
    MmBenchRow,
    read_rows,
    require_openpyxl,
    write_sheet,
)

CHINESE_LETTER = "请直接回答选项字母。"


@dataclass(frozen=True, kw_only=True)
class MmBenchQuestion(BenchmarkQuestion):
    """A question with its options in one order; the id is the index of the row."""

    row: MmBenchRow


@dataclass(frozen=True, kw_only=True)
class MmBench(Benchmark[MmBenchQuestion]):
    """The questions of a split, each in all rotations of its options.

    A rotation is a row of the official file (index of the question plus a multiple of ``ROTATION_STEP``), or generated
    with the same numbering if the file has none.
    """

    def take(self, count: int) -> Self:
        """The benchmark with the first ``count`` questions in all their rotations."""
        indices = [question.row.index for question in self.questions if question.row.index < ROTATION_STEP][:count]
        questions = tuple(question for question in self.questions if question.row.question_index in indices)
        return dataclasses.replace(self, questions=questions)

    def metrics(self, answered: Sequence[tuple[MmBenchQuestion, str]]) -> dict[str, Any]:
        """Accuracies; empty for a split without answers.

        ``accuracy`` is circular: a question is correct if it is correct in every rotation; also by category and by
        ``l2-category``. ``single_pass_accuracy`` uses the original order only. Answers from which no option can be read
        are wrong; ``unread`` is the fraction of these (the official evaluation asks a language model instead).
        """
        if self.questions[0].row.answer is None:
            return {}
        read = {question.row.index: read_option(answer, question.row.options) for question, answer in answered}
        rows = [question.row for question, _ in answered]
        correct: dict[int, bool] = {}
        for row in rows:
            correct[row.question_index] = correct.get(row.question_index, True) and read[row.index] == row.answer
        originals = [row for row in rows if row.index < ROTATION_STEP]
        return {
            "accuracy": mean(correct.values()),
            "single_pass_accuracy": mean(read[row.index] == row.answer for row in originals),
            "by_l2_category": mean_by((row.l2_category, correct[row.index]) for row in originals),
            "by_category": mean_by((row.category, correct[row.index]) for row in originals),
            "unread": mean(letter is None for letter in read.values()),
            "questions": len(originals),
            "asked": len(rows),
        }

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``mmbench-submission.xlsx``: the rows of the official file with LLaVA-1.5's columns, for the server.

        Generated rotations are not included.
        """
        path = folder / f"{self.name}-submission.xlsx"
        answered = self._answered(answers)
        write_sheet(path, [(question.row.cells, answer) for question, answer in answered if question.row.cells])
        return (path,)

    def submission(self, answered: Sequence[tuple[MmBenchQuestion, str]], model: str) -> dict[str, Any]:
        """None: see ``write``."""
        return {}


def read_option(answer: str, options: Sequence[str]) -> str | None:
    """The letter chosen by an answer, or None.

    The only option letter that is a word of the answer (``B``, ``B.``, ``(B)``), except an ``A`` among more than three
    words (which may be an article); otherwise the letter of the only option whose text occurs in the answer.
    """
    letters = LETTERS[: len(options)]
    words = [word.strip("().,:") for word in answer.split()]
    alone = {word for word in words if word in letters and word}
    if len(alone) == 1 and not (alone == {"A"} and len(words) > 3):
        return alone.pop()
    named = [letter for letter, option in zip(letters, options, strict=True) if option.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def open_mmbench(path: Path, *, chinese: bool = False) -> MmBench:
    """Reads MMBench.

    ::

        PATH/mmbench_dev_20230712.tsv   or another; columns index, question, hint, A, B, C, D, answer, category,
                                        l2-category, image (base64, or the index of the row with the image)

    Args:
        path: The folder with one such file, or the file.
        chinese: Use the Chinese instruction (``mmbench-cn``).

    Raises:
        ConfigError: openpyxl, which writes the submission, is not installed.
        DataError: The file is missing or invalid, or an index is not unique.
    """
    require_openpyxl()
    patterns = ["mmbench_dev_cn_*.tsv", "*cn*.tsv"] if chinese else ["mmbench_dev_2*.tsv", "mmbench_dev_en_*.tsv"]
    file = find_file(path, [*patterns, "*.tsv"], what="table of questions")
    rows = read_rows(file)
    if all(row.index < ROTATION_STEP for row in rows):
        rows = [rotation for row in rows for rotation in _rotations(row)]
    indices = {row.index for row in rows}
    orphans = [row for row in rows if row.question_index not in indices]
    if orphans:
        raise DataError(
            f"{file}: row {orphans[0].index} is a rotation of {orphans[0].question_index}, which is not in the file. "
            "Download the file again."
        )
    instruction = CHINESE_LETTER if chinese else LETTER
    questions = [MmBenchQuestion(str(row.index), row.image, _prompt(row, instruction), row=row) for row in rows]
    return MmBench(name="mmbench-cn" if chinese else "mmbench", file=file, questions=tuple(questions))


def _rotations(row: MmBenchRow) -> list[MmBenchRow]:
    """The row, and all cyclic shifts of its options."""
    rows = [row]
    for shift in range(1, len(row.options)):
        options = row.options[shift:] + row.options[:shift]
        answer = row.answer and LETTERS[(LETTERS.index(row.answer) - shift) % len(options)]
        index = row.index + shift * ROTATION_STEP
        rows.append(dataclasses.replace(row, index=index, options=options, answer=answer, cells={}))
    return rows


def _prompt(row: MmBenchRow, instruction: str) -> str:
    """LLaVA-1.5's prompt: hint, question, a line ``A. OPTION`` per option, and the instruction."""
    options = [f"{letter}. {option}" for letter, option in zip(LETTERS, row.options, strict=False)]
    return "\n".join([*([row.hint] if row.hint else []), row.question, *options, instruction])
