"""Small images and JSON files in the formats of the benchmarks, and a bundle that answers from a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes files into the test's folder: images by their names, lists of JSON lines, and other JSON values."""

    def write(name: str, content: Any = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png"):
            Image.new("RGB", (8, 6), content or "red").save(path)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".jsonl" or path.name.startswith("coco_pope"):
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        else:
            path.write_text(json.dumps(content))
        return path

    return write


class TableBundle:
    """Answers questions from a table; counts encoded images, and fails after a number of them."""

    def __init__(self, answers: dict[str, str], fail_after: int | None = None) -> None:
        self.answers, self.fail_after = answers, fail_after
        self.looked: list[Any] = []
        self.asked: list[list[str]] = []
        self.tokens: set[int | None] = set()
        self.backbone = type("Backbone", (), {"precision": torch.float32})()

    def predict(self, image: Any) -> Any:
        if len(self.looked) == self.fail_after:
            raise KeyboardInterrupt
        self.looked.append(image)
        return self

    def ask_many(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        self.tokens.add(max_new_tokens)
        self.asked.append(list(questions))
        return [self.answers.get(question, "?") for question in questions]


@pytest.fixture
def table_bundle() -> type[TableBundle]:
    return TableBundle
