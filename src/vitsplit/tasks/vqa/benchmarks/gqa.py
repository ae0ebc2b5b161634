"""GQA: questions made from scene graphs, with one right answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import SHORT, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    need,
    read_object,
    require_answers,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class GqaItem:
    """A question; ``is_open`` tells questions that ask for a word from those between two ("yes or no?", "a or b?")."""

    question_id: str
    image: Path
    question: str
    truth: str
    is_open: bool | None


@dataclass(frozen=True, kw_only=True)
class Gqa:
    """The questions of a split."""

    file: Path
    items: tuple[GqaItem, ...]
    name: str = "gqa"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts."""
        return [BenchmarkQuestion(item.question_id, item.image, f"{item.question}\n{SHORT}") for item in self.items]

    def take(self, count: int) -> Gqa:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """The share of answers that are exactly the true one; of open and of binary questions too, where types are.

        Answers are compared in lower case and without a period at the end, as LLaVA-1.5 hands them in.
        """
        require_answers([item.question_id for item in self.items], answers, self.file)
        right = [(prediction(answers[item.question_id]) == item.truth, item.is_open) for item in self.items]
        figures = {"accuracy": sum(hit for hit, _ in right) / len(right)}
        for name, wanted in (("open", True), ("binary", False)):
            hits = [hit for hit, is_open in right if is_open is wanted]
            if hits:
                figures[name] = sum(hits) / len(hits)
        return figures

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``gqa-predictions.json``: a list of ``{"questionId", "prediction"}``, as GQA's own script reads it."""
        require_answers([item.question_id for item in self.items], answers, self.file)
        rows = [
            {"questionId": item.question_id, "prediction": prediction(answers[item.question_id])} for item in self.items
        ]
        path = folder / "gqa-predictions.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return (path,)


def prediction(answer: str) -> str:
    """What is handed in for an answer: without periods at the end, in lower case."""
    return answer.strip().rstrip(".").lower()


def open_gqa(path: Path) -> Gqa:
    """Reads GQA.

    ::

        PATH/testdev_balanced_questions.json   or in PATH/questions1.2, PATH/data or PATH/data/questions1.2
        PATH/images/n288870.jpg                or in PATH/data/images

    The file is ``{"201307251": {"question": ..., "imageId": "n288870", "answer": "yes", "types": {"structural":
    "query", ...}}, ...}``.

    Args:
        path: The folder, or the file of questions (of another split with answers, such as ``val``).

    Raises:
        DataError: Files, images or answers are missing.
    """
    folders = ("", "questions1.2/", "questions/", "data/", "data/questions1.2/")
    file = find_file(path, [f"{folder}testdev_balanced_questions.json" for folder in folders], what="file of questions")
    rows = {
        number: (row, *need(row, {"question": "text", "imageId": "id", "answer": "text"}, file, f"question {number}"))
        for number, row in read_object(file).items()
    }
    names = {number: f"{image}.jpg" for number, (_, _, image, _) in rows.items()}
    images = find_images(names, root_of(file), ("images", "../images", "../data/images", "../../images"), file)
    items = []
    for number, (row, question, _, answer) in rows.items():
        types = row.get("types")
        structural = types.get("structural") if isinstance(types, dict) else None
        items.append(
            GqaItem(
                question_id=number,
                image=images[number],
                question=question,
                truth=answer,
                is_open=None if structural is None else structural == "query",
            )
        )
    return Gqa(file=file, items=tuple(items))
