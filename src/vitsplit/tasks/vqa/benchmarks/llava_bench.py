"""LLaVA-Bench (in the wild): open questions that a language model judges; here are only its answers' file."""

from __future__ import annotations

import dataclasses
import hashlib
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
    require_unique,
    root_of,
)


@dataclass(frozen=True, kw_only=True)
class LlavaBench:
    """The questions, in the order of the file; ids are its ``question_id``."""

    file: Path
    items: tuple[BenchmarkQuestion, ...]
    name: str = "llava-bench"
    max_new_tokens: int = 1024

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """The questions as they are."""
        return self.items

    def take(self, count: int) -> LlavaBench:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Nothing: its judge is a language model."""
        require_answers([item.id for item in self.items], answers, self.file)
        return {}

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``llava-bench-MODEL.jsonl``: a line for every question, in their order, as LLaVA's review script reads them.

        A line has ``question_id``, ``prompt``, ``text``, ``answer_id`` (a hash, so the same for the same answer),
        ``model_id`` and ``metadata``.
        """
        require_answers([item.id for item in self.items], answers, self.file)
        lines = []
        for item in self.items:
            text = answers[item.id]
            digest = hashlib.sha256(json.dumps([model, item.id, text]).encode()).hexdigest()
            lines.append(
                {
                    "question_id": int(item.id),
                    "prompt": item.prompt,
                    "text": text,
                    "answer_id": digest[:22],
                    "model_id": model,
                    "metadata": {},
                }
            )
        path = folder / f"llava-bench-{model}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return (path,)


def open_llava_bench(path: Path) -> LlavaBench:
    """Reads LLaVA-Bench in the wild.

    ::

        PATH/questions.jsonl    lines of {"question_id": 0, "image": "001.jpg", "text": ..., "category": "conv"}
        PATH/images/001.jpg

    Args:
        path: The folder, or the file.

    Raises:
        DataError: The file or images are missing, or an id occurs twice.
    """
    file = find_file(path, ["questions.jsonl"], what="file of questions")
    rows = [
        need(row, {"question_id": "number", "image": "text", "text": "text"}, file, where)
        for where, row in read_lines(file)
    ]
    require_unique((str(number) for number, *_ in rows), file)
    images = find_images({str(number): image for number, image, _ in rows}, root_of(file), ("images", "."), file)
    items = [BenchmarkQuestion(str(number), images[str(number)], text) for number, _, text in rows]
    return LlavaBench(file=file, items=tuple(items))
