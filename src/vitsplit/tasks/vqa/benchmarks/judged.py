"""MM-Vet and LLaVA-Bench: open questions that a language model judges; only files of answers are written here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.files import (
    find_file,
    find_images,
    read_lines,
    read_object,
    require_fields,
    require_unique,
    root_of,
)


class MmVet(Benchmark[BenchmarkQuestion]):
    """The questions of MM-Vet."""

    def submission(self, answered: Sequence[tuple[BenchmarkQuestion, str]], model: str) -> dict[str, Any]:
        """``mmvet-MODEL.json``: ``{"v1_0": answer, ...}``, as read by the official judge."""
        return {f"mmvet-{model}.json": {question.id: answer for question, answer in answered}}


class LlavaBench(Benchmark[BenchmarkQuestion]):
    """The questions of LLaVA-Bench (in the wild)."""

    def submission(self, answered: Sequence[tuple[BenchmarkQuestion, str]], model: str) -> dict[str, Any]:
        """``llava-bench-MODEL.jsonl``: one line per question, in their order, as read by LLaVA's review script.

        A line has ``question_id``, ``prompt``, ``text``, ``answer_id`` (a hash of the answer), ``model_id`` and
        ``metadata``.
        """
        lines = [
            {
                "question_id": int(question.id),
                "prompt": question.prompt,
                "text": answer,
                "answer_id": hashlib.sha256(json.dumps([model, question.id, answer]).encode()).hexdigest()[:22],
                "model_id": model,
                "metadata": {},
            }
            for question, answer in answered
        ]
        return {f"llava-bench-{model}.jsonl": lines}


def open_mmvet(path: Path) -> MmVet:
    """Reads MM-Vet.

    ::

        PATH/mm-vet.json        {"v1_0": {"imagename": "v1_0.png", "question": ...}, ...}
        PATH/images/v1_0.png

    Args:
        path: The folder (or its parent, as in the official archive), or the file.

    Raises:
        DataError: The file or images are missing.
    """
    file = find_file(path, ["mm-vet.json", "mm-vet/mm-vet.json"], what="file of questions")
    rows = {
        name: require_fields(row, {"imagename": "text", "question": "text"}, file, f"question {name}")
        for name, row in read_object(file).items()
    }
    images = find_images({name: image for name, (image, _) in rows.items()}, root_of(file), ("images", "."), file)
    questions = [BenchmarkQuestion(name, images[name], question) for name, (_, question) in rows.items()]
    return MmVet(name="mmvet", file=file, questions=tuple(questions), max_new_tokens=1024)


def open_llava_bench(path: Path) -> LlavaBench:
    """Reads LLaVA-Bench (in the wild).

    ::

        PATH/questions.jsonl    lines of {"question_id": 0, "image": "001.jpg", "text": ..., "category": "conv"}
        PATH/images/001.jpg

    Args:
        path: The folder, or the file.

    Raises:
        DataError: The file or images are missing, or an id is not unique.
    """
    file = find_file(path, ["questions.jsonl"], what="file of questions")
    rows = [
        require_fields(row, {"question_id": "number", "image": "text", "text": "text"}, file, where)
        for where, row in read_lines(file)
    ]
    require_unique((str(number) for number, *_ in rows), file)
    images = find_images({str(number): image for number, image, _ in rows}, root_of(file), ("images", "."), file)
    questions = [BenchmarkQuestion(str(number), images[str(number)], text) for number, _, text in rows]
    return LlavaBench(name="llava-bench", file=file, questions=tuple(questions), max_new_tokens=1024)
