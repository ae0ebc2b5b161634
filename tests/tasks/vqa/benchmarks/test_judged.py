"""MM-Vet and LLaVA-Bench: input files, and the files for the judge models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks import open_benchmark

Put = Callable[..., Path]


def test_mmvet_files(put: Put, tmp_path: Path) -> None:
    put("mm-vet/images/v1_0.png")
    put("mm-vet/images/v1_1.jpg")
    rows = {
        "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "1"},
        "v1_1": {"imagename": "v1_1.jpg", "question": "Why?", "answer": "2"},
    }
    put("mm-vet/mm-vet.json", rows)
    benchmark = open_benchmark("mmvet", tmp_path)
    assert [question.prompt for question in benchmark.questions] == ["What is x?", "Why?"]
    answers = {"v1_0": "x is 1", "v1_1": "So."}
    assert benchmark.measure(answers) == {}
    (file,) = benchmark.write(answers, tmp_path, "first")
    assert file.name == "mmvet-first.json"
    assert json.loads(file.read_text()) == answers
    with pytest.raises(DataError, match=r"mm-vet\.json: 1 of 2 .*answer \(v1_1\)"):
        benchmark.write({"v1_0": "x"}, tmp_path, "first")


def test_llava_bench_files(put: Put, tmp_path: Path) -> None:
    put("images/001.jpg")
    rows = [
        {"question_id": 1, "image": "001.jpg", "text": "Describe it.", "category": "detail"},
        {"question_id": 0, "image": "001.jpg", "text": "Where?", "category": "conv"},
    ]
    put("questions.jsonl", rows)
    benchmark = open_benchmark("llava-bench", tmp_path)
    answers = {"0": "In Rome", "1": 'A "town"\nby the sea'}
    (file,) = benchmark.write(answers, tmp_path, "first")
    # The judge reads questions and answers side by side: a line each, in the order of the questions.
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["question_id"], line["prompt"], line["text"]) for line in lines] == [
        (1, "Describe it.", "A \"town\"\nby the sea"), (0, "Where?", "In Rome")
    ]  # fmt: skip
    assert set(lines[0]) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert lines[0]["model_id"] == "first"
    assert lines[0]["answer_id"] != lines[1]["answer_id"]
    assert benchmark.measure(answers) == {}
    put("questions.jsonl", [rows[0], rows[0]])
    with pytest.raises(DataError, match="id 1 is not unique"):
        open_benchmark("llava-bench", tmp_path)
