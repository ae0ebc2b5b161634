"""VizWiz: questions that blind people asked about their photos, many of which cannot be answered."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks.base import SHORT, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.consensus import ANSWERS, clean, clean_as_server, clean_truths, consensus
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    need,
    optional_text,
    read_list,
    require_answers,
    require_unique,
    root_of,
)

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True, kw_only=True)
class VizWizItem:
    """A photo's question; ``truths`` is empty where the answers are not public."""

    image: Path
    question: str
    truths: tuple[str, ...] = ()
    answer_type: str = ""


@dataclass(frozen=True, kw_only=True)
class VizWiz:
    """The questions of a split."""

    file: Path
    items: tuple[VizWizItem, ...]
    name: str = "vizwiz"
    max_new_tokens: int = 128

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """LLaVA-1.5's prompts."""
        return [
            BenchmarkQuestion(item.image.name, item.image, f"{item.question}\n{UNANSWERABLE}\n{SHORT}")
            for item in self.items
        ]

    def take(self, count: int) -> VizWiz:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """The accuracy of VQAv2, over all questions and by type of answer; empty for a split without answers."""
        require_answers([item.image.name for item in self.items], answers, self.file)
        if not self.items[0].truths:
            return {}
        by_type = defaultdict(list)
        for item in self.items:
            truths = clean_truths(item.truths)
            by_type[item.answer_type].append(consensus(clean(answers[item.image.name]), truths))
        scores = [score for values in by_type.values() for score in values]
        return {
            "accuracy": sum(scores) / len(scores),
            "by_answer_type": {name: sum(values) / len(values) for name, values in sorted(by_type.items())},
        }

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``vizwiz-submission.json``: a list of ``{"image", "answer"}``, cleaned as LLaVA-1.5 sends it in."""
        require_answers([item.image.name for item in self.items], answers, self.file)
        rows = [{"image": item.image.name, "answer": clean_as_server(answers[item.image.name])} for item in self.items]
        path = folder / "vizwiz-submission.json"
        path.write_text(json.dumps(rows), encoding="utf-8")
        return (path,)


def open_vizwiz(path: Path) -> VizWiz:
    """Reads VizWiz.

    ::

        PATH/val.json or PATH/Annotations/val.json   of test.json, which has no answers, give the file itself
        PATH/val/VizWiz_val_00000000.jpg             and PATH/test/...

    An entry is ``{"image": "VizWiz_val_00000000.jpg", "question": ..., "answers": [{"answer": ...}, ... ten],
    "answer_type": ...}``.

    Args:
        path: The folder (``val.json``, else ``test.json``), or the file.

    Raises:
        DataError: Files, images or some of the answers are missing, or an image occurs twice.
    """
    names = [f"{folder}{split}.json" for split in ("val", "test") for folder in ("", "Annotations/")]
    file = find_file(path, names, what="file of questions")
    content = read_list(file)
    rows = [need(row, {"image": "text", "question": "text"}, file, f"entry {i}") for i, row in enumerate(content)]
    require_unique((image for image, _ in rows), file)
    with_answers = sum("answers" in row for row in content)
    if with_answers not in (0, len(content)):
        raise DataError(f"{file}: {len(content) - with_answers} of {len(content)} entries have no answers.")
    root, split = root_of(file), file.stem
    folders = (split, f"images/{split}", f"../{split}", f"../images/{split}", "images", ".")
    images = find_images({image: image for image, _ in rows}, root, folders, file)
    items = [
        VizWizItem(image=images[image], question=question, **(_truths(row, file) if with_answers else {}))
        for (image, question), row in zip(rows, content, strict=True)
    ]
    return VizWiz(file=file, items=tuple(items))


def _truths(row: Mapping[str, Any], file: Path) -> dict[str, Any]:
    (answers,) = need(row, {"answers": "list"}, file, row["image"])
    truths = tuple(need(answer, {"answer": "text"}, file, row["image"])[0] for answer in answers)
    if len(truths) != ANSWERS:
        raise DataError(f"{file}: {row['image']} has {len(truths)} answers, not {ANSWERS}. Fetch the file again.")
    return {"truths": truths, "answer_type": optional_text(row, "answer_type", file, row["image"])}
