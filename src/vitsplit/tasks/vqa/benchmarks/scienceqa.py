"""ScienceQA: multiple choice questions from school books, about half of them with an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import LETTER, Benchmark, BenchmarkQuestion, mean
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    find_optional,
    optional_text,
    read_list,
    read_object,
    require_fields,
    require_strings,
    require_unique,
    root_of,
)

LETTERS = "ABCDE"
LLAVA_FILE = "llava_test_CQM-A.json"
IMAGE_FOLDERS = ("images/test", "test", "images", ".")


@dataclass(frozen=True, kw_only=True)
class ScienceQuestion(BenchmarkQuestion):
    """A question with its correct letter and the number of options."""

    letter: str
    num_options: int


@dataclass(frozen=True, kw_only=True)
class ScienceQa(Benchmark[ScienceQuestion]):
    """The questions of the test split.

    Attributes:
        lenient: See ``read_letter``.
    """

    lenient: bool = False

    def metrics(self, answered: Sequence[tuple[ScienceQuestion, str]]) -> dict[str, Any]:
        """The accuracy on all questions and on those with an image (``img_accuracy``, as published).

        An answer without a letter is wrong; ``unread`` is the fraction of these.
        """
        letters = [(self._letter(answer, question), question) for question, answer in answered]
        correct = [(letter == question.letter, question.image is not None) for letter, question in letters]
        with_image = [hit for hit, has_image in correct if has_image]
        metrics = {"accuracy": mean(hit for hit, _ in correct)}
        if with_image:
            metrics["img_accuracy"] = mean(with_image)
        metrics["unread"] = mean(letter is None for letter, _ in letters)
        return metrics

    def submission(self, answered: Sequence[tuple[ScienceQuestion, str]], model: str) -> dict[str, Any]:
        """``scienceqa-results.json``: option index by problem (-1: no letter found), and the answers, as LLaVA's."""
        letters = {question.id: self._letter(answer, question) for question, answer in answered}
        results = {
            "results": {name: -1 if letter is None else LETTERS.index(letter) for name, letter in letters.items()},
            "outputs": {question.id: answer for question, answer in answered},
        }
        return {"scienceqa-results.json": results}

    def _letter(self, answer: str, question: ScienceQuestion) -> str | None:
        return read_letter(answer, question.num_options, lenient=self.lenient)


def read_letter(answer: str, options: int, *, lenient: bool = False) -> str | None:
    """The letter chosen by an answer, or None.

    As in LLaVA's ``eval_science_qa.py``: a single letter; a letter at the start followed by a period and a space; or a
    single occurrence of ``The answer is X`` followed by another character.

    Args:
        answer: The answer.
        options: Number of options.
        lenient: Also accept a letter surrounded by whitespace or followed by a line break, the first of several
            ``The answer is X``, and one at the end of the answer.
    """
    if lenient:
        text = answer.replace("\n", ". ")
        found = re.fullmatch(r"\s*([A-E])\s*", text) or re.match(r"([A-E])\. ", text)
        found = found or re.search(r"The answer is ([A-E])\.", text) or re.search(r"The answer is ([A-E])", text)
        letter = found[1] if found else ""
    elif len(answer) == 1:
        letter = answer
    elif answer[1:3] == ". " and answer[0] in LETTERS:
        letter = answer[0]
    else:
        matches = re.findall(r"The answer is ([A-Z]).", answer)
        letter = matches[0] if len(matches) == 1 else ""
    return letter if letter and letter in LETTERS[:options] else None


class _Problem(NamedTuple):
    id: str
    text: str
    letter: str
    num_options: int
    image: str


def open_scienceqa(path: Path, *, images_only: bool = False, lenient: bool = False) -> ScienceQa:
    """Reads the test split of ScienceQA.

    ::

        PATH/problems.json, PATH/pid_splits.json   the official files; prompts are LLaVA-1.5's: ``Context: HINT`` if
                                                   there is a hint, the question, and a line ``A. OPTION`` per option
        PATH/llava_test_CQM-A.json                 LLaVA's file of prompts, used instead if present (or given itself)
        PATH/images/test/PROBLEM/image.png         or PATH/test/...

    Correct answers are read from ``problems.json``, else from the conversations in LLaVA's file.

    Args:
        path: The folder, or LLaVA's file.
        images_only: Skip questions without an image (``scienceqa-img``).
        lenient: See ``read_letter`` (``scienceqa-lenient``).

    Raises:
        DataError: Files, images or answers are missing, or an id is not unique.
    """
    llava_file = find_optional(path, [LLAVA_FILE])
    problem_file = find_optional(root_of(path), ["problems.json"])
    if llava_file is not None:
        file, rows = llava_file, _from_llava(llava_file, problem_file)
    elif problem_file is not None:
        file, rows = problem_file, _from_problems(path, problem_file)
    else:
        raise DataError(f"{path}: neither problems.json nor {LLAVA_FILE} found. Check the path, or add the files.")
    names = {row.id: row.image for row in rows if row.image}
    images = find_images(names, root_of(file), IMAGE_FOLDERS, file) if names else {}
    questions = tuple(
        ScienceQuestion(
            row.id, images.get(row.id), f"{row.text}\n{LETTER}", letter=row.letter, num_options=row.num_options
        )
        for row in rows
        if row.image or not images_only
    )
    name = f"scienceqa{'-img' if images_only else ''}{'-lenient' if lenient else ''}"
    return ScienceQa(name=name, file=file, questions=questions, lenient=lenient)


def _from_problems(path: Path, file: Path) -> list[_Problem]:
    problems = read_object(file)
    split_file = find_file(path, ["pid_splits.json"], what="file of splits")
    names = require_strings(read_object(split_file, "test"), split_file, "'test'")
    require_unique(names, split_file)
    rows = []
    for name in names:
        if name not in problems:
            raise DataError(f"{file}: problem {name} of {split_file.name} not found. Download both files again.")
        problem, where = problems[name], f"problem {name}"
        letter, num_options = _truth(problem, file, where)
        (question,) = require_fields(problem, {"question": "text"}, file, where)
        hint = optional_text(problem, "hint", file, where)
        choices = "\n".join(f"{LETTERS[index]}. {choice}" for index, choice in enumerate(problem["choices"]))
        context = f"Context: {hint}\n" if hint else ""
        image = optional_text(problem, "image", file, where)
        rows.append(
            _Problem(name, f"{context}{question}\n{choices}", letter, num_options, f"{name}/{image}" if image else "")
        )
    return rows


def _from_llava(file: Path, problem_file: Path | None) -> list[_Problem]:
    problems = {} if problem_file is None else read_object(problem_file)
    rows = []
    for index, row in enumerate(read_list(file)):
        name, turns = require_fields(row, {"id": "id", "conversations": "list"}, file, f"entry {index}")
        where = f"problem {name}"
        if not turns:
            raise DataError(f"{file}: {where} has no conversation. Use LLaVA's file.")
        if problem_file is None:
            (truth,) = require_fields(turns[-1], {"value": "text"}, file, where)
            found, num_options = read_letter(truth, len(LETTERS), lenient=True), len(LETTERS)
            if found is None:
                raise DataError(f"{file}: {where} has no correct answer. Add problems.json to the folder.")
            letter = found
        elif name not in problems:
            raise DataError(f"{problem_file}: {where} of {file.name} not found. Download both files again.")
        else:
            letter, num_options = _truth(problems[name], problem_file, where)
        (value,) = require_fields(turns[0], {"value": "text"}, file, where)
        image = optional_text(row, "image", file, where)
        rows.append(_Problem(name, value.replace("<image>", "").strip(), letter, num_options, image))
    require_unique((row.id for row in rows), file)
    return rows


def _truth(problem: Mapping[str, Any], file: Path, where: str) -> tuple[str, int]:
    """The correct letter and the number of options."""
    choices, answer = require_fields(problem, {"choices": "list", "answer": "number"}, file, where)
    require_strings(choices, file, f"the choices of {where}")
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise DataError(f"{file}: {where} has no option {answer}, or too many options. Download the file again.")
    return LETTERS[answer], len(choices)
