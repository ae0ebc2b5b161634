"""VizWiz: questions of blind people about their photos, many of which are unanswerable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import SHORT
from vitsplit.tasks.vqa.benchmarks.consensus import HumanAnswers, HumanQuestion, clean_as_server, read_human_answers
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    read_list,
    require_fields,
    require_unique,
    root_of,
)

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(HumanAnswers):
    """The questions of a split; ids are the names of the images."""

    def submission(self, answered: Sequence[tuple[HumanQuestion, str]], model: str) -> dict[str, Any]:
        """``vizwiz-submission.json``: a list of ``{"image", "answer"}``, normalized as by LLaVA-1.5."""
        rows = [{"image": question.id, "answer": clean_as_server(answer)} for question, answer in answered]
        return {"vizwiz-submission.json": rows}


def open_vizwiz(path: Path) -> VizWiz:
    """Reads VizWiz.

    ::

        PATH/val.json or PATH/Annotations/val.json   for test.json, which has no answers, pass the file itself
        PATH/val/VizWiz_val_00000000.jpg             and PATH/test/...

    An entry is ``{"image": "VizWiz_val_00000000.jpg", "question": ..., "answers": [{"answer": ...}, ... ten],
    "answer_type": ...}``.

    Args:
        path: The folder (``val.json``, else ``test.json``), or the file.

    Raises:
        DataError: Files, images or some of the answers are missing, or an image is not unique.
    """
    names = [f"{folder}{split}.json" for split in ("val", "test") for folder in ("", "Annotations/")]
    file = find_file(path, names, what="file of questions")
    content = read_list(file)
    rows = [
        require_fields(row, {"image": "text", "question": "text"}, file, f"entry {i}") for i, row in enumerate(content)
    ]
    require_unique((image for image, _ in rows), file)
    with_answers = sum("answers" in row for row in content)
    if with_answers not in (0, len(content)):
        raise DataError(f"{file}: {len(content) - with_answers} of {len(content)} entries have no answers.")
    root, split = root_of(file), file.stem
    folders = (split, f"images/{split}", f"../{split}", f"../images/{split}", "images", ".")
    images = find_images({image: image for image, _ in rows}, root, folders, file)
    questions = []
    for (image, question), row in zip(rows, content, strict=True):
        truths = read_human_answers(row, file, image) if with_answers else {}
        prompt = f"{question}\n{UNANSWERABLE}\n{SHORT}"
        questions.append(HumanQuestion(images[image].name, images[image], prompt, **truths))
    return VizWiz(name="vizwiz", file=file, questions=tuple(questions))
