"""TextVQA: questions about text in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import SHORT, Benchmark, BenchmarkQuestion, mean
from vitsplit.tasks.vqa.benchmarks.consensus import ANSWERS, clean_as_server, consensus
from vitsplit.tasks.vqa.benchmarks.files import (
    Kind,
    find_file,
    find_images,
    read_object,
    require_fields,
    require_strings,
    require_unique,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class TextVqaQuestion(BenchmarkQuestion):
    """A question with ten human answers."""

    truths: tuple[str, ...]


class TextVqa(Benchmark[TextVqaQuestion]):
    """The questions of the validation split."""

    def metrics(self, answered: Sequence[tuple[TextVqaQuestion, str]]) -> dict[str, Any]:
        """The mean agreement with ten human answers, all normalized by ``clean_as_server``."""
        scores = [
            consensus(clean_as_server(answer), [clean_as_server(truth) for truth in question.truths])
            for question, answer in answered
        ]
        return {"accuracy": mean(scores)}

    def submission(self, answered: Sequence[tuple[TextVqaQuestion, str]], model: str) -> dict[str, Any]:
        """``textvqa-submission.json``: a list of ``{"question_id", "answer"}``."""
        rows = [{"question_id": int(question.id), "answer": answer} for question, answer in answered]
        return {"textvqa-submission.json": rows}


def open_textvqa(path: Path, *, ocr: bool = False) -> TextVqa:
    """Reads TextVQA.

    ::

        PATH/TextVQA_0.5.1_val.json
        PATH/train_images/003a8ae2ef43b901.jpg       the archive of train and val images
        PATH/TextVQA_Rosetta_OCR_v0.2_val.json       for ``ocr`` only

    Args:
        path: The folder, or the file of questions.
        ocr: Include OCR tokens in the prompt (``Reference OCR token: A, B``), as for LLaVA-1.5's published accuracy.

    Raises:
        DataError: Files, images, answers or tokens are missing, or an id is not unique.
    """
    file = find_file(path, ["TextVQA_[0-9]*_val.json"], what="file of questions")
    keys: dict[str, Kind] = {"question_id": "number", "image_id": "id", "question": "text", "answers": "list"}
    rows = [require_fields(row, keys, file, f"question {index}") for index, row in enumerate(read_object(file, "data"))]
    require_unique((str(number) for number, *_ in rows), file)
    root = root_of(file)
    names = {str(number): f"{image}.jpg" for number, image, *_ in rows}
    images = find_images(names, root, ("train_images", "images", "train_val_images/train_images", "."), file)
    hints = _ocr_hints(root, [image for _, image, *_ in rows], file) if ocr else {}
    questions = []
    for number, image, question, truths in rows:
        if len(truths) != ANSWERS:
            raise DataError(f"{file}: question {number} has {len(truths)} answers, not {ANSWERS}. Use the val file.")
        prompt = f"{question[:1].upper()}{question[1:]}\n{hints.get(image, '')}{SHORT}"
        texts = require_strings(truths, file, f"the answers of question {number}")
        questions.append(TextVqaQuestion(str(number), images[str(number)], prompt, truths=texts))
    return TextVqa(name="textvqa-ocr" if ocr else "textvqa", file=file, questions=tuple(questions))


def _ocr_hints(root: Path, images: Sequence[str], file: Path) -> dict[str, str]:
    token_file = find_file(root, ["TextVQA_Rosetta_OCR_*_val.json"], what="file of OCR tokens")
    hints = {}
    for index, row in enumerate(read_object(token_file, "data")):
        image, tokens = require_fields(row, {"image_id": "id", "ocr_tokens": "list"}, token_file, f"entry {index}")
        texts = require_strings(tokens, token_file, f"the tokens of image {image}")
        hints[image] = f"Reference OCR token: {', '.join(texts)}\n"
    missing = [image for image in images if image not in hints]
    if missing:
        raise DataError(
            f"{token_file}: no tokens of {len(missing)} images of {file.name}, such as {missing[0]}. "
            "Use the tokens of the same split."
        )
    return hints
