"""TextVQA: questions that can only be answered by reading what is written in the image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import SHORT, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.consensus import ANSWERS, clean_as_server, consensus
from vitsplit.tasks.vqa.benchmarks.files import (
    Kind,
    find_file,
    find_images,
    need,
    need_texts,
    read_object,
    require_answers,
    require_unique,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class TextVqaItem:
    """A question; ``truths`` are ten human answers; ``hint`` is a line of what a text reader found, or empty."""

    question_id: int
    image: Path
    question: str
    truths: tuple[str, ...]
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class TextVqa:
    """The questions of the validation split."""

    file: Path
    items: tuple[TextVqaItem, ...]
    name: str = "textvqa"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts: the question with a capital letter, the hint, and how to answer."""
        return [
            BenchmarkQuestion(
                str(item.question_id),
                item.image,
                f"{item.question[:1].upper()}{item.question[1:]}\n{item.hint}{SHORT}",
            )
            for item in self.items
        ]

    def take(self, count: int) -> TextVqa:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """The mean agreement with ten people, all answers cleaned by TextVQA's own processor (``clean_as_server``)."""
        require_answers([str(item.question_id) for item in self.items], answers, self.file)
        scores = [
            consensus(
                clean_as_server(answers[str(item.question_id)]), [clean_as_server(truth) for truth in item.truths]
            )
            for item in self.items
        ]
        return {"accuracy": sum(scores) / len(scores)}

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``textvqa-submission.json``: a list of ``{"question_id", "answer"}``."""
        require_answers([str(item.question_id) for item in self.items], answers, self.file)
        rows = [{"question_id": item.question_id, "answer": answers[str(item.question_id)]} for item in self.items]
        path = folder / "textvqa-submission.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return (path,)


def open_textvqa(path: Path, *, ocr: bool = False) -> TextVqa:
    """Reads TextVQA.

    ::

        PATH/TextVQA_0.5.1_val.json
        PATH/train_images/003a8ae2ef43b901.jpg       the validation images are in the archive of train and val
        PATH/TextVQA_Rosetta_OCR_v0.2_val.json       for ``ocr`` alone

    Args:
        path: The folder, or the file of questions.
        ocr: Say in the prompt what a text reader found (``Reference OCR token: A, B``), as LLaVA-1.5's published
            figure does.

    Raises:
        DataError: Files, images, answers or tokens are missing, or an id occurs twice.
    """
    file = find_file(path, ["TextVQA_[0-9]*_val.json"], what="file of questions")
    keys: dict[str, Kind] = {"question_id": "number", "image_id": "id", "question": "text", "answers": "list"}
    rows = [need(row, keys, file, f"question {index}") for index, row in enumerate(read_object(file, "data"))]
    require_unique((str(number) for number, *_ in rows), file)
    root = root_of(file)
    names = {str(number): f"{image}.jpg" for number, image, *_ in rows}
    images = find_images(names, root, ("train_images", "images", "train_val_images/train_images", "."), file)
    hints = _hints(root, [image for _, image, *_ in rows], file) if ocr else {}
    items = []
    for number, image, question, truths in rows:
        if len(truths) != ANSWERS:
            raise DataError(f"{file}: question {number} has {len(truths)} answers, not {ANSWERS}. Give the val file.")
        items.append(
            TextVqaItem(
                question_id=number,
                image=images[str(number)],
                question=question,
                truths=need_texts(truths, file, f"the answers of question {number}"),
                hint=hints.get(image, ""),
            )
        )
    return TextVqa(file=file, items=tuple(items), name="textvqa-ocr" if ocr else "textvqa")


def _hints(root: Path, images: Sequence[str], file: Path) -> dict[str, str]:
    tokens_at = find_file(root, ["TextVQA_Rosetta_OCR_*_val.json"], what="file of OCR tokens")
    hints = {}
    for index, row in enumerate(read_object(tokens_at, "data")):
        image, tokens = need(row, {"image_id": "id", "ocr_tokens": "list"}, tokens_at, f"entry {index}")
        read = need_texts(tokens, tokens_at, f"the tokens of image {image}")
        hints[image] = f"Reference OCR token: {', '.join(read)}\n"
    lonely = [image for image in images if image not in hints]
    if lonely:
        raise DataError(
            f"{tokens_at}: no tokens of {len(lonely)} images of {file.name}, such as {lonely[0]}. "
            "Give the tokens of the same split."
        )
    return hints
