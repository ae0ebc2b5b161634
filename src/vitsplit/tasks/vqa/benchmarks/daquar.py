"""DAQUAR, and other JSON lines of image, question and answer: questions about rooms, answered by words or numbers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    need,
    read_lines,
    require_answers,
    root_of,
)
from vitsplit.tasks.vqa.metrics import exact_match, normalised, set_match


@dataclass(frozen=True, kw_only=True)
class DaquarItem:
    """A line; ``truth`` is one answer, or several separated by commas; ``id`` is the number of the line."""

    id: str
    image: Path
    question: str
    truth: str


@dataclass(frozen=True, kw_only=True)
class Daquar:
    """The questions of a file, with what is added to each of them."""

    file: Path
    items: tuple[DaquarItem, ...]
    hint: str = ""
    name: str = "daquar"
    max_new_tokens: int = 32

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """The questions, with the hint that the model was trained with."""
        return [
            BenchmarkQuestion(item.id, item.image, f"{item.question} {self.hint}" if self.hint else item.question)
            for item in self.items
        ]

    def take(self, count: int) -> Daquar:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Three shares, without WordNet (so no WUPS); answers are compared normalised (see ``metrics.normalised``).

        ``exact_match``: the whole text is the true one, order of several words included.

        ``set_match``: the sets A of answered and T of true words, separated by commas, are equal. DAQUAR's own figure,
        ``mean(min(prod_{a in A} max_{t in T} m(a, t), prod_{t in T} max_{a in A} m(a, t)))``, is this one where
        ``m(a, t)`` is 1 for equal words and else 0: what its authors call accuracy.

        ``set_overlap``: mean of ``min(|A & T| / |A|, |A & T| / |T|)``. Not official; it gives part of a point for part
        of several words.
        """
        require_answers([item.id for item in self.items], answers, self.file)
        pairs = [(answers[item.id], item.truth) for item in self.items]
        return {
            "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
            "set_match": sum(set_match(*pair) for pair in pairs) / len(pairs),
            "set_overlap": sum(set_overlap(*pair) for pair in pairs) / len(pairs),
        }

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``daquar-answers.jsonl``: the lines of the file with ``prediction``."""
        require_answers([item.id for item in self.items], answers, self.file)
        lines = [
            {"image": item.image.name, "question": item.question, "answer": item.truth, "prediction": answers[item.id]}
            for item in self.items
        ]
        path = folder / "daquar-answers.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return (path,)


def set_overlap(answer: str, truth: str) -> float:
    """``min(|A & T| / |A|, |A & T| / |T|)`` of the sets of words that are separated by commas; 0 if one is empty."""
    said, true = ({normalised(word) for word in text.split(",")} - {""} for text in (answer, truth))
    return len(said & true) / max(len(said), len(true)) if said and true else 0.0


def open_daquar(path: Path, *, hint: str = "") -> Daquar:
    """Reads JSON lines of questions.

    ::

        PATH/daquar_val.jsonl    lines of {"image": "1404.jpg", "question": ..., "answer": "glass, bottle"}
        PATH/images/1404.jpg     or PATH/images/val/..., or beside the file

    Args:
        path: The file, or a folder with one whose name ends in ``val.jsonl`` (or one ``*.jsonl`` at all).
        hint: What is added to every question after a space, such as how long the answer should be.

    Raises:
        DataError: The file, images or answers are missing.
    """
    file = find_file(path, ["*val.jsonl", "*.jsonl"], what="file of questions")
    rows = {
        where.removeprefix("line "): need(row, {"image": "text", "question": "id", "answer": "id"}, file, where)
        for where, row in read_lines(file)
    }
    root = root_of(file)
    names = {number: image for number, (image, *_) in rows.items()}
    images = find_images(names, root, ("images/val", "images/train", "images", "."), file)
    items = [
        DaquarItem(id=number, image=images[number], question=question.strip(), truth=answer)
        for number, (_, question, answer) in rows.items()
    ]
    return Daquar(file=file, items=tuple(items), hint=hint)
