"""POPE: is an object in the image that is not there? Yes or no, on COCO's val2014."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.files import shown
from vitsplit.tasks.vqa.benchmarks.base import SHORT, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import (
    Kind,
    find_file,
    find_images,
    need,
    read_lines,
    require_answers,
    require_unique,
    root_of,
)

KEYS: dict[str, Kind] = {"question_id": "number", "image": "text", "text": "text", "label": "text"}
CATEGORIES = ("random", "popular", "adversarial")


@dataclass(frozen=True, kw_only=True)
class PopeItem:
    """A line of a ``coco_pope_*.json``: its question ids begin anew in every category."""

    category: str
    question_id: int
    image: Path
    text: str
    is_yes: bool

    @property
    def id(self) -> str:
        """Unique over the categories."""
        return f"{self.category}/{self.question_id}"


@dataclass(frozen=True, kw_only=True)
class Pope:
    """The questions of one or all categories."""

    file: Path
    items: tuple[PopeItem, ...]
    name: str = "pope"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts."""
        return [BenchmarkQuestion(item.id, item.image, f"{item.text}\n{SHORT}") for item in self.items]

    def take(self, count: int) -> Pope:
        """The first questions of every category."""
        items = [
            item
            for category in CATEGORIES
            for item in [item for item in self.items if item.category == category][:count]
        ]
        return dataclasses.replace(self, items=tuple(items))

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (of "yes") and the share of "yes", by category, and means over these.

        Precision without a "yes" and F1 without a right one are 0. The mean of F1 is LLaVA-1.5's figure for POPE.
        """
        require_answers([item.id for item in self.items], answers, self.file)
        by_category = {}
        for category in CATEGORIES:
            pairs = [(says_yes(answers[item.id]), item.is_yes) for item in self.items if item.category == category]
            if pairs:
                by_category[category] = _figures(pairs)
        means = {
            name: sum(figures[name] for figures in by_category.values()) / len(by_category)
            for name in ("f1", "accuracy")
        }
        return {"mean_f1": means["f1"], "mean_accuracy": means["accuracy"], "by_category": by_category}

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``pope-CATEGORY.jsonl``: lines of question and answer ("yes" or "no"), as POPE's own script reads them."""
        require_answers([item.id for item in self.items], answers, self.file)
        paths = []
        for category in dict.fromkeys(item.category for item in self.items):
            lines = [
                {"question": item.text, "answer": "yes" if says_yes(answers[item.id]) else "no"}
                for item in self.items
                if item.category == category
            ]
            path = folder / f"pope-{category}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            paths.append(path)
        return tuple(paths)


def says_yes(answer: str) -> bool:
    """LLaVA's reading: of the first sentence, without commas; "No", "no" or "not" among its words is a no, else yes."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _figures(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    """Figures of (said yes, is yes)."""
    hits = sum(said and true for said, true in pairs)
    said_yes, true_yes = sum(said for said, _ in pairs), sum(true for _, true in pairs)
    precision = hits / said_yes if said_yes else 0.0
    recall = hits / true_yes if true_yes else 0.0
    return {
        "accuracy": sum(said == true for said, true in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_share": said_yes / len(pairs),
        "questions": len(pairs),
    }


def open_pope(path: Path) -> Pope:
    """Reads POPE.

    ::

        PATH/coco_pope_{random,popular,adversarial}.json   or PATH/coco/..., as LLaVA-1.5 lays them out
        PATH/val2014/COCO_val2014_*.jpg                    or beside that folder

    A line is ``{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the
    image?", "label": "yes"}``.

    Args:
        path: The folder, or one of the three files: then that category alone.

    Raises:
        DataError: Files, labels or images are missing, or an id occurs twice in a file.
    """
    if path.is_file():
        category = path.stem.rpartition("_")[2]
        if category not in CATEGORIES:
            raise DataError(f"{path}: cannot tell the category. Name the file coco_pope_CATEGORY.json.")
        files = {category: path}
    else:
        files = {
            name: find_file(path, [f"coco_pope_{name}.json", f"coco/coco_pope_{name}.json"], what=f"file of {name}")
            for name in CATEGORIES
        }
    items = [item for category, file in files.items() for item in _read(category, file)]
    return Pope(file=path, items=tuple(items))


def _read(category: str, file: Path) -> list[PopeItem]:
    rows = []
    for where, row in read_lines(file):
        number, image, text, label = need(row, KEYS, file, where)
        if label not in ("yes", "no"):
            raise DataError(f"{file}: {where} has the label {shown(label)}, not yes or no. Mend or remove it.")
        rows.append((number, image, text, label == "yes"))
    require_unique((str(number) for number, *_ in rows), file)
    root = root_of(file)
    images = find_images(
        {str(number): image for number, image, *_ in rows}, root, ("val2014", "../val2014", "images", "."), file
    )
    return [
        PopeItem(category=category, question_id=number, image=images[str(number)], text=text, is_yes=is_yes)
        for number, _, text, is_yes in rows
    ]
