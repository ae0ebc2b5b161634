"""VQAv2: open questions on COCO images with ten human answers each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.files import shown
from vitsplit.tasks.vqa.benchmarks.base import SHORT
from vitsplit.tasks.vqa.benchmarks.consensus import HumanAnswers, HumanQuestion, clean_as_server, read_human_answers
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    find_optional,
    read_object,
    require_fields,
    require_unique,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class VqaV2(HumanAnswers):
    """The questions of a split.

    Attributes:
        other_ids: Further questions of the test split that a submission must include.
    """

    other_ids: tuple[int, ...] = ()

    def submission(self, answered: Sequence[tuple[HumanQuestion, str]], model: str) -> dict[str, Any]:
        """``vqav2-submission.json``: a list of ``{"question_id", "answer"}``, normalized as by LLaVA-1.5.

        The test-dev server requires all questions of the test split; the others have an empty answer.
        """
        rows = [{"question_id": int(question.id), "answer": clean_as_server(answer)} for question, answer in answered]
        included = {row["question_id"] for row in rows}
        rows += [{"question_id": number, "answer": ""} for number in self.other_ids if number not in included]
        return {"vqav2-submission.json": rows}


def open_vqav2(path: Path) -> VqaV2:
    """Reads VQAv2.

    ::

        PATH/v2_OpenEnded_mscoco_SPLIT_questions.json   val2014, test2015 or test-dev2015
        PATH/v2_mscoco_SPLIT_annotations.json           human answers, of val2014 (and train2014) only
        PATH/SPLIT/COCO_SPLIT_000000262148.jpg          images of test-dev2015 are those of test2015

    Without annotations there are no metrics, only a submission. For test-dev2015 it includes the other questions of
    test2015 if their file is in the folder, since the server requires all.

    Args:
        path: The folder, or the file of questions if the folder has several.

    Raises:
        DataError: Files or images are missing, a question has no annotation, or an id is not unique.
    """
    file = find_file(path, ["v2_OpenEnded_mscoco_*_questions.json"], what="file of questions")
    content = read_object(file)
    rows = [
        require_fields(
            row, {"question_id": "number", "image_id": "number", "question": "text"}, file, f"question {index}"
        )
        for index, row in enumerate(read_object(file, "questions"))
    ]
    require_unique((str(number) for number, *_ in rows), file)
    (subtype,) = require_fields(content, {"data_subtype": "text"}, file, "the file")
    if not re.fullmatch(r"[\w-]{1,64}", subtype):
        raise DataError(f"{file}: 'data_subtype' is {shown(subtype)}, not the name of a split. Use the official file.")
    split = subtype.replace("test-dev", "test")
    names = {str(number): f"COCO_{split}_{image:012d}.jpg" for number, image, _ in rows}
    root = root_of(file)
    images = find_images(names, root, (split, f"images/{split}", f"../{split}", "images", "."), file)
    annotation_file = find_optional(root, [f"v2_mscoco_{subtype}_annotations.json"])
    truths = {} if annotation_file is None else _annotations(annotation_file, [number for number, *_ in rows], file)
    questions = [
        HumanQuestion(str(number), images[str(number)], f"{question}\n{SHORT}", **truths.get(number, {}))
        for number, _, question in rows
    ]
    return VqaV2(name="vqav2", file=file, questions=tuple(questions), other_ids=_test_ids(root, subtype))


def _annotations(annotation_file: Path, numbers: Sequence[int], file: Path) -> dict[int, dict[str, Any]]:
    found = {}
    for index, row in enumerate(read_object(annotation_file, "annotations")):
        (number,) = require_fields(row, {"question_id": "number"}, annotation_file, f"annotation {index}")
        if number in found:
            raise DataError(f"{annotation_file}: question {number} is not unique. Remove one of the annotations.")
        found[number] = read_human_answers(row, annotation_file, f"question {number}")
    missing = [number for number in numbers if number not in found]
    if missing:
        raise DataError(
            f"{annotation_file}: {len(missing)} of {len(numbers)} questions of {file.name} have no annotation, such as "
            f"{missing[0]}. Use the annotations of the same split."
        )
    return found


def _test_ids(root: Path, subtype: str) -> tuple[int, ...]:
    if subtype != "test-dev2015":
        return ()
    file = find_optional(root, ["v2_OpenEnded_mscoco_test2015_questions.json"])
    if file is None:
        return ()
    rows = read_object(file, "questions")
    return tuple(require_fields(row, {"question_id": "number"}, file, f"question {i}")[0] for i, row in enumerate(rows))
