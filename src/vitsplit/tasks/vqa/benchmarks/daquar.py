"""DAQUAR, and other JSON Lines files of image, question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion, mean
from vitsplit.tasks.vqa.benchmarks.files import find_file, find_images, read_lines, require_fields, root_of
from vitsplit.tasks.vqa.metrics import exact_match, normalized, set_match


@dataclass(frozen=True, kw_only=True)
class DaquarQuestion(BenchmarkQuestion):
    """A line of the file; ``id`` is its number, ``truth`` one answer or several separated by commas."""

    question: str
    truth: str


class Daquar(Benchmark[DaquarQuestion]):
    """The questions of a file."""

    def metrics(self, answered: Sequence[tuple[DaquarQuestion, str]]) -> dict[str, Any]:
        """Three accuracies of normalized answers (``metrics.normalized``), without WordNet (no WUPS).

        ``exact_match``: the answer equals the reference, including the order of several words.

        ``set_match``: the sets A of answered and T of reference words, separated by commas, are equal. This is DAQUAR's
        accuracy ``mean(min(prod_{a in A} max_{t in T} m(a, t), prod_{t in T} max_{a in A} m(a, t)))`` where ``m(a, t)``
        is 1 for equal words and 0 otherwise.

        ``set_overlap``: mean of ``min(|A & T| / |A|, |A & T| / |T|)``, an unofficial metric with partial credit.
        """
        pairs = [(answer, question.truth) for question, answer in answered]
        return {
            "exact_match": mean(exact_match(*pair) for pair in pairs),
            "set_match": mean(set_match(*pair) for pair in pairs),
            "set_overlap": mean(set_overlap(*pair) for pair in pairs),
        }

    def submission(self, answered: Sequence[tuple[DaquarQuestion, str]], model: str) -> dict[str, Any]:
        """``daquar-answers.jsonl``: the lines of the file with ``prediction``."""
        lines = []
        for question, answer in answered:
            assert isinstance(question.image, Path)
            line = {"image": question.image.name, "question": question.question, "answer": question.truth}
            lines.append({**line, "prediction": answer})
        return {"daquar-answers.jsonl": lines}


def set_overlap(answer: str, truth: str) -> float:
    """``min(|A & T| / |A|, |A & T| / |T|)`` of the sets of comma-separated words; 0 if one is empty."""
    words, true_words = ({normalized(word) for word in text.split(",")} - {""} for text in (answer, truth))
    return len(words & true_words) / max(len(words), len(true_words)) if words and true_words else 0.0


def open_daquar(path: Path, *, hint: str = "") -> Daquar:
    """Reads questions in JSON Lines.

    ::

        PATH/daquar_val.jsonl    lines of {"image": "1404.jpg", "question": ..., "answer": "glass, bottle"}
        PATH/images/1404.jpg     or PATH/images/val/..., or in the folder of the file

    Args:
        path: The file, or a folder with one file ``*val.jsonl`` or ``*.jsonl``.
        hint: Text appended to every question after a space, as in training.

    Raises:
        DataError: The file, images or answers are missing.
    """
    file = find_file(path, ["*val.jsonl", "*.jsonl"], what="file of questions")
    rows = {
        where.removeprefix("line "): require_fields(
            row, {"image": "text", "question": "id", "answer": "id"}, file, where
        )
        for where, row in read_lines(file)
    }
    names = {number: image for number, (image, *_) in rows.items()}
    images = find_images(names, root_of(file), ("images/val", "images/train", "images", "."), file)
    questions = []
    for number, (_, question, answer) in rows.items():
        text = question.strip()
        prompt = f"{text} {hint}" if hint else text
        questions.append(DaquarQuestion(number, images[number], prompt, question=text, truth=answer))
    return Daquar(name="daquar", file=file, questions=tuple(questions), max_new_tokens=32)
