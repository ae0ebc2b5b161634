"""ScienceQA: multiple choice from school books, about half of it with an image."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import LETTER, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    find_optional,
    need,
    need_texts,
    optional_text,
    read_list,
    read_object,
    require_answers,
    require_unique,
    root_of,
)

LETTERS = "ABCDE"
FROM_LLAVA = "llava_test_CQM-A.json"
IMAGE_FOLDERS = ("images/test", "test", "images", ".")


@dataclass(frozen=True, kw_only=True)
class ScienceItem:
    """A problem: its text with the options, the right letter, and how many letters there are to choose from."""

    problem_id: str
    image: Path | None
    text: str
    letter: str
    options: int


@dataclass(frozen=True, kw_only=True)
class ScienceQa:
    """The problems of the test split."""

    file: Path
    items: tuple[ScienceItem, ...]
    lenient: bool = False
    name: str = "scienceqa"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts; problems without an image are asked without one."""
        return [BenchmarkQuestion(item.problem_id, item.image, f"{item.text}\n{LETTER}") for item in self.items]

    def take(self, count: int) -> ScienceQa:
        """The first problems."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Shares of right letters: of all problems and of those with an image (``img_accuracy``, as published).

        An answer in which no letter is found is wrong; ``unread`` is their share. Letters are read as LLaVA's script
        does, and with ``lenient`` also where it does not see them (``read_letter``).
        """
        require_answers([item.problem_id for item in self.items], answers, self.file)
        read = [(self._letter(answers, item), item) for item in self.items]
        right = [(letter == item.letter, item.image is not None) for letter, item in read]
        with_image = [hit for hit, has_image in right if has_image]
        figures = {"accuracy": sum(hit for hit, _ in right) / len(right)}
        if with_image:
            figures["img_accuracy"] = sum(with_image) / len(with_image)
        figures["unread"] = sum(letter is None for letter, _ in read) / len(read)
        return figures

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``scienceqa-results.json``: ``{"results": {problem: index of the option, -1: unread}}``, and the texts.

        As ScienceQA's and LLaVA's scripts keep them.
        """
        require_answers([item.problem_id for item in self.items], answers, self.file)
        letters = {item.problem_id: self._letter(answers, item) for item in self.items}
        results = {
            "results": {name: -1 if letter is None else LETTERS.index(letter) for name, letter in letters.items()},
            "outputs": {item.problem_id: answers[item.problem_id] for item in self.items},
        }
        path = folder / "scienceqa-results.json"
        path.write_text(json.dumps(results, indent=2), encoding="utf-8")
        return (path,)

    def _letter(self, answers: Mapping[str, str], item: ScienceItem) -> str | None:
        return read_letter(answers[item.problem_id], item.options, lenient=self.lenient)


def read_letter(answer: str, options: int, *, lenient: bool = False) -> str | None:
    """The letter that an answer chooses; None if it chooses none of the options.

    As LLaVA's ``eval_science_qa.py`` reads it: the letter alone; or first, with a period and a space; or what stands
    once in the answer after ``The answer is`` and before another character.

    Args:
        answer: The answer.
        options: How many letters there are to choose from.
        lenient: Also a letter with space around it or followed by a line break, and the first of several after
            ``The answer is``, wherever that ends.
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
        said = re.findall(r"The answer is ([A-Z]).", answer)
        letter = said[0] if len(said) == 1 else ""
    return letter if letter and letter in LETTERS[:options] else None


def open_scienceqa(path: Path, *, images_only: bool = False, lenient: bool = False) -> ScienceQa:
    """Reads the test split of ScienceQA.

    ::

        PATH/problems.json, PATH/pid_splits.json   the official files; a prompt is LLaVA-1.5's: ``Context: HINT`` where
                                                   there is a hint, the question, and a line ``A. OPTION`` for each
        PATH/llava_test_CQM-A.json                 where it is there (or given itself), LLaVA's file of prompts
        PATH/images/test/PROBLEM/image.png         or PATH/test/...

    Right answers come from ``problems.json``; without it from the conversations of LLaVA's file.

    Args:
        path: The folder, or LLaVA's file.
        images_only: Leave out the problems without an image (``scienceqa-img``).
        lenient: See ``read_letter`` (``scienceqa-lenient``).

    Raises:
        DataError: Files, images or answers are missing, or an id occurs twice.
    """
    prompts_at = find_optional(path, [FROM_LLAVA])
    problems_at = find_optional(root_of(path), ["problems.json"])
    if prompts_at is None and problems_at is None:
        raise DataError(f"{path}: neither problems.json nor {FROM_LLAVA} there. Check the path, or copy them there.")
    problems = {} if problems_at is None else read_object(problems_at)
    if prompts_at is not None:
        file, rows = prompts_at, _from_llava(prompts_at, problems, problems_at)
    else:
        assert problems_at is not None
        file, rows = problems_at, _from_problems(path, problems, problems_at)
    names = {item.problem_id: name for item, name in rows if name is not None}
    images = find_images(names, root_of(file), IMAGE_FOLDERS, file) if names else {}
    items = tuple(dataclasses.replace(item, image=images.get(item.problem_id)) for item, _ in rows)
    if images_only:
        items = tuple(item for item in items if item.image is not None)
    name = f"scienceqa{'-img' if images_only else ''}{'-lenient' if lenient else ''}"
    return ScienceQa(file=file, items=items, lenient=lenient, name=name)


def _from_problems(path: Path, problems: Mapping[str, Any], file: Path) -> list[tuple[ScienceItem, str | None]]:
    splits_at = find_file(path, ["pid_splits.json"], what="file of splits")
    rows = []
    asked = need_texts(read_object(splits_at, "test"), splits_at, "'test'")
    require_unique(asked, splits_at)
    for name in asked:
        if name not in problems:
            raise DataError(f"{file}: problem {name} of {splits_at.name} is not in it. Fetch both files again.")
        problem = problems[name]
        letter, options = _truth(name, problem, file)
        where = f"problem {name}"
        (question,) = need(problem, {"question": "text"}, file, where)
        hint = optional_text(problem, "hint", file, where)
        hint = f"Context: {hint}\n" if hint else ""
        choices = "\n".join(f"{LETTERS[index]}. {choice}" for index, choice in enumerate(problem["choices"]))
        image = optional_text(problem, "image", file, where)
        item = ScienceItem(
            problem_id=name, image=None, text=f"{hint}{question}\n{choices}", letter=letter, options=options
        )
        rows.append((item, f"{name}/{image}" if image else None))
    return rows


def _from_llava(
    file: Path, problems: Mapping[str, Any], problems_at: Path | None
) -> list[tuple[ScienceItem, str | None]]:
    rows = []
    for index, row in enumerate(read_list(file)):
        name, turns = need(row, {"id": "id", "conversations": "list"}, file, f"entry {index}")
        if not turns:
            raise DataError(f"{file}: problem {name} has no conversation. Give LLaVA's file.")
        if problems_at is None:
            (truth,) = need(turns[-1], {"value": "text"}, file, f"problem {name}")
            letter, options = read_letter(truth, len(LETTERS), lenient=True), len(LETTERS)
            if letter is None:
                raise DataError(f"{file}: problem {name} has no right answer. Put problems.json beside the file.")
        elif name not in problems:
            raise DataError(f"{problems_at}: problem {name} of {file.name} is not in it. Fetch both files again.")
        else:
            letter, options = _truth(name, problems[name], problems_at)
        (value,) = need(turns[0], {"value": "text"}, file, f"problem {name}")
        text = value.replace("<image>", "").strip()
        item = ScienceItem(problem_id=name, image=None, text=text, letter=letter, options=options)
        rows.append((item, optional_text(row, "image", file, f"problem {name}") or None))
    require_unique((item.problem_id for item, _ in rows), file)
    return rows


def _truth(name: str, problem: Mapping[str, Any], file: Path) -> tuple[str, int]:
    choices, answer = need(problem, {"choices": "list", "answer": "number"}, file, f"problem {name}")
    need_texts(choices, file, f"the choices of problem {name}")
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise DataError(f"{file}: problem {name} has no option {answer}, or too many. Fetch the file again.")
    return LETTERS[answer], len(choices)
