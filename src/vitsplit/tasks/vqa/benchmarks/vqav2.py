"""VQAv2: open questions on COCO with ten human answers each."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.files import shown
from vitsplit.tasks.vqa.benchmarks.base import SHORT, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.consensus import ANSWERS, clean, clean_as_server, clean_truths, consensus
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    find_optional,
    need,
    optional_text,
    read_object,
    require_answers,
    require_unique,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class VqaItem:
    """A question.

    Attributes:
        question_id: As in the official file.
        image: The image.
        question: The question alone.
        truths: Ten human answers, as in the official file; empty where they are not public.
        answer_type: ``yes/no``, ``number`` or ``other``; empty without annotations.
    """

    question_id: int
    image: Path
    question: str
    truths: tuple[str, ...] = ()
    answer_type: str = ""


@dataclass(frozen=True, kw_only=True)
class VqaV2:
    """The questions of a split."""

    file: Path
    items: tuple[VqaItem, ...]
    unasked: tuple[int, ...] = ()
    """Questions of the whole test split that are not asked, but must be in the file that is sent in."""
    name: str = "vqav2"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts."""
        return [
            BenchmarkQuestion(str(item.question_id), item.image, f"{item.question}\n{SHORT}") for item in self.items
        ]

    def take(self, count: int) -> VqaV2:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """The official accuracy, over all questions and by type of answer; empty without annotations.

        The model's answers are cleaned, and people's where they differ, as the official script does.
        """
        self._require(answers)
        if not self.items[0].truths:
            return {}
        by_type = defaultdict(list)
        for item in self.items:
            truths = clean_truths(item.truths)
            by_type[item.answer_type].append(consensus(clean(answers[str(item.question_id)]), truths))
        scores = [score for values in by_type.values() for score in values]
        return {
            "accuracy": sum(scores) / len(scores),
            "by_answer_type": {name: sum(values) / len(values) for name, values in sorted(by_type.items())},
        }

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``vqav2-submission.json``: a list of ``{"question_id", "answer"}``, cleaned as LLaVA-1.5 sends it in.

        Questions of the whole test split that were not asked are in it with an empty answer: the server of test-dev
        asks for all of them.
        """
        self._require(answers)
        rows = [
            {"question_id": item.question_id, "answer": clean_as_server(answers[str(item.question_id)])}
            for item in self.items
        ]
        asked = {item.question_id for item in self.items}
        rows += [{"question_id": number, "answer": ""} for number in self.unasked if number not in asked]
        path = folder / "vqav2-submission.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return (path,)

    def _require(self, answers: Mapping[str, str]) -> None:
        require_answers([str(item.question_id) for item in self.items], answers, self.file)


def open_vqav2(path: Path) -> VqaV2:
    """Reads VQAv2.

    ::

        PATH/v2_OpenEnded_mscoco_SPLIT_questions.json   val2014, test2015 or test-dev2015
        PATH/v2_mscoco_SPLIT_annotations.json           only of val2014 (and train2014): what is measured with
        PATH/SPLIT/COCO_SPLIT_000000262148.jpg          images of test-dev2015 are those of test2015

    Without annotations there are no figures, only the file for the server. For test-dev2015 it also holds the other
    questions of test2015, unanswered, if their file is beside: the server asks for all.

    Args:
        path: The folder, or the file of questions where several are in it.

    Raises:
        DataError: Files or images are missing, a question has no annotation, or an id occurs twice.
    """
    file = find_file(path, ["v2_OpenEnded_mscoco_*_questions.json"], what="file of questions")
    content = read_object(file)
    rows = [
        need(row, {"question_id": "number", "image_id": "number", "question": "text"}, file, f"question {index}")
        for index, row in enumerate(read_object(file, "questions"))
    ]
    require_unique((str(number) for number, *_ in rows), file)
    (subtype,) = need(content, {"data_subtype": "text"}, file, "the file")
    if not re.fullmatch(r"[\w-]{1,64}", subtype):
        raise DataError(f"{file}: 'data_subtype' is {shown(subtype)}, which names no split. Give the official file.")
    split = subtype.replace("test-dev", "test")
    names = {str(number): f"COCO_{split}_{image:012d}.jpg" for number, image, _ in rows}
    root = root_of(file)
    images = find_images(names, root, (split, f"images/{split}", f"../{split}", "images", "."), file)
    notes = find_optional(root, [f"v2_mscoco_{subtype}_annotations.json"])
    known = {} if notes is None else _annotations(notes, [number for number, *_ in rows], file)
    items = [
        VqaItem(question_id=number, image=images[str(number)], question=question, **known.get(number, {}))
        for number, _, question in rows
    ]
    return VqaV2(file=file, items=tuple(items), unasked=_whole_test(root, subtype))


def _annotations(notes: Path, asked: Sequence[int], file: Path) -> dict[int, dict[str, Any]]:
    known = {}
    for index, row in enumerate(read_object(notes, "annotations")):
        number, answers = need(row, {"question_id": "number", "answers": "list"}, notes, f"annotation {index}")
        where = f"question {number}"
        truths = tuple(need(answer, {"answer": "text"}, notes, where)[0] for answer in answers)
        if len(truths) != ANSWERS:
            raise DataError(f"{notes}: question {number} has {len(truths)} answers, not {ANSWERS}. Fetch it again.")
        if number in known:
            raise DataError(f"{notes}: question {number} occurs twice. Remove one of the annotations.")
        known[number] = {"truths": truths, "answer_type": optional_text(row, "answer_type", notes, where)}
    lonely = [number for number in asked if number not in known]
    if lonely:
        raise DataError(
            f"{notes}: {len(lonely)} of {len(asked)} questions of {file.name} have no annotation, such as "
            f"{lonely[0]}. Give the annotations of the same split."
        )
    return known


def _whole_test(root: Path, subtype: str) -> tuple[int, ...]:
    if subtype != "test-dev2015":
        return ()
    file = find_optional(root, ["v2_OpenEnded_mscoco_test2015_questions.json"])
    if file is None:
        return ()
    rows = read_object(file, "questions")
    return tuple(need(row, {"question_id": "number"}, file, f"question {i}")[0] for i, row in enumerate(rows))
