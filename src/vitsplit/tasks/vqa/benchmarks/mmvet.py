"""MM-Vet: open questions that a language model judges; here are only its answers' file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import find_file, find_images, need, read_object, require_answers, root_of


@dataclass(frozen=True, kw_only=True)
class MmVet:
    """The questions: id (``v1_0``), image and text."""

    file: Path
    items: tuple[BenchmarkQuestion, ...]
    name: str = "mmvet"
    max_new_tokens: int = 1024

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """The questions as they are."""
        return self.items

    def take(self, count: int) -> MmVet:
        """The first questions."""
        return dataclasses.replace(self, items=self.items[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """Nothing: its judge is a language model."""
        require_answers([item.id for item in self.items], answers, self.file)
        return {}

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """``mmvet-MODEL.json``: ``{"v1_0": answer, ...}``, as the official judge reads it."""
        require_answers([item.id for item in self.items], answers, self.file)
        path = folder / f"mmvet-{model}.json"
        path.write_text(json.dumps({item.id: answers[item.id] for item in self.items}, indent=2), encoding="utf-8")
        return (path,)


def open_mmvet(path: Path) -> MmVet:
    """Reads MM-Vet.

    ::

        PATH/mm-vet.json        {"v1_0": {"imagename": "v1_0.png", "question": ...}, ...}
        PATH/images/v1_0.png

    Args:
        path: The folder (also one with the folder ``mm-vet`` of the official archive in it), or the file.

    Raises:
        DataError: The file or images are missing.
    """
    file = find_file(path, ["mm-vet.json", "mm-vet/mm-vet.json"], what="file of questions")
    rows = {
        name: need(row, {"imagename": "text", "question": "text"}, file, f"question {name}")
        for name, row in read_object(file).items()
    }
    images = find_images({name: image for name, (image, _) in rows.items()}, root_of(file), ("images", "."), file)
    items = [BenchmarkQuestion(name, images[name], question) for name, (_, question) in rows.items()]
    return MmVet(file=file, items=tuple(items))
