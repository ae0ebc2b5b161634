"""POPE: yes/no questions on the presence of objects in COCO val2014, a test of hallucination."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitsplit.errors import DataError
from vitsplit.files import shown
from vitsplit.tasks.vqa.benchmarks.base import SHORT, Benchmark, BenchmarkQuestion, mean
from vitsplit.tasks.vqa.benchmarks.files import (
    Kind,
    find_file,
    find_images,
    read_lines,
    require_fields,
    require_unique,
    root_of,
)

KEYS: dict[str, Kind] = {"question_id": "number", "image": "text", "text": "text", "label": "text"}
CATEGORIES = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True)
class PopeQuestion(BenchmarkQuestion):
    """A line of a ``coco_pope_*.json``; its id is ``CATEGORY/QUESTION_ID``, as numbers repeat in every category."""

    category: str
    text: str
    is_yes: bool


@dataclass(frozen=True, kw_only=True)
class Pope(Benchmark[PopeQuestion]):
    """The questions of one or all categories."""

    def take(self, count: int) -> Self:
        """The benchmark with the first ``count`` questions of every category."""
        questions = [
            question
            for category in CATEGORIES
            for question in [each for each in self.questions if each.category == category][:count]
        ]
        return dataclasses.replace(self, questions=tuple(questions))

    def metrics(self, answered: Sequence[tuple[PopeQuestion, str]]) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (of "yes") and the fraction of "yes" by category, and means over categories.

        Precision without a "yes" and F1 without a correct one are 0. The mean of F1 is LLaVA-1.5's figure for POPE.
        """
        by_category = {}
        for category in CATEGORIES:
            pairs = [
                (says_yes(answer), question.is_yes) for question, answer in answered if question.category == category
            ]
            if pairs:
                by_category[category] = _binary_metrics(pairs)
        return {
            "mean_f1": mean(metrics["f1"] for metrics in by_category.values()),
            "mean_accuracy": mean(metrics["accuracy"] for metrics in by_category.values()),
            "by_category": by_category,
        }

    def submission(self, answered: Sequence[tuple[PopeQuestion, str]], model: str) -> dict[str, Any]:
        """``pope-CATEGORY.jsonl``: lines of question and answer ("yes" or "no"), as read by POPE's script."""
        files: dict[str, list[dict[str, str]]] = {}
        for question, answer in answered:
            line = {"question": question.text, "answer": "yes" if says_yes(answer) else "no"}
            files.setdefault(f"pope-{question.category}.jsonl", []).append(line)
        return files


def says_yes(answer: str) -> bool:
    """LLaVA's rule: an answer is a no if its first sentence has the word "No", "no" or "not", otherwise a yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _binary_metrics(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Metrics of pairs (predicted yes, is yes)."""
    hits = sum(predicted and true for predicted, true in pairs)
    predicted_yes, true_yes = sum(predicted for predicted, _ in pairs), sum(true for _, true in pairs)
    precision = hits / predicted_yes if predicted_yes else 0.0
    recall = hits / true_yes if true_yes else 0.0
    return {
        "accuracy": mean(predicted == true for predicted, true in pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_share": predicted_yes / len(pairs),
        "questions": len(pairs),
    }


def open_pope(path: Path) -> Pope:
    """Reads POPE.

    ::

        PATH/coco_pope_{random,popular,adversarial}.json   or PATH/coco/..., as for LLaVA-1.5
        PATH/val2014/COCO_val2014_*.jpg                    or next to that folder

    A line is ``{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the
    image?", "label": "yes"}``.

    Args:
        path: The folder, or one of the three files for that category alone.

    Raises:
        DataError: Files, labels or images are missing, or an id is not unique in a file.
    """
    if path.is_file():
        category = path.stem.rpartition("_")[2]
        if category not in CATEGORIES:
            raise DataError(f"{path}: unknown category. Name the file coco_pope_CATEGORY.json.")
        files = {category: path}
    else:
        files = {
            name: find_file(path, [f"coco_pope_{name}.json", f"coco/coco_pope_{name}.json"], what=f"file of {name}")
            for name in CATEGORIES
        }
    questions = [question for category, file in files.items() for question in _read(category, file)]
    return Pope(name="pope", file=path, questions=tuple(questions))


def _read(category: str, file: Path) -> list[PopeQuestion]:
    rows = []
    for where, row in read_lines(file):
        number, image, text, label = require_fields(row, KEYS, file, where)
        if label not in ("yes", "no"):
            raise DataError(f"{file}: {where} has the label {shown(label)}, not yes or no. Correct or remove it.")
        rows.append((str(number), image, text, label == "yes"))
    require_unique((number for number, *_ in rows), file)
    names = {number: image for number, image, *_ in rows}
    images = find_images(names, root_of(file), ("val2014", "../val2014", "images", "."), file)
    return [
        PopeQuestion(
            f"{category}/{number}",
            images[number],
            f"{text}\n{SHORT}",
            category=category,
            text=text,
            is_yes=is_yes,
        )
        for number, _, text, is_yes in rows
    ]
