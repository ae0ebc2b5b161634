"""VQAv2, VizWiz and TextVQA: files, prompts, metrics worked out by hand, submissions, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks import open_benchmark

Put = Callable[..., Path]
SHORT = "Answer the question using a single word or phrase."


def ten_answers(**counts: int) -> list[dict[str, Any]]:
    """Ten answers, as VQAv2's annotations have them."""
    words = [word for word, count in counts.items() for _ in range(count)]
    return [{"answer": word, "answer_id": n, "answer_confidence": "yes"} for n, word in enumerate(words, 1)]


def vqav2_questions(split: str) -> dict[str, Any]:
    return {
        "data_subtype": split,
        "questions": [
            {"question_id": 9001, "image_id": 9, "question": "How many?"},
            {"question_id": 9002, "image_id": 9, "question": "Is it?"},
            {"question_id": 12001, "image_id": 12, "question": "What?"},
        ],
    }


@pytest.fixture
def vqav2(put: Put) -> Path:
    put("val2014/COCO_val2014_000000000009.jpg")
    put("val2014/COCO_val2014_000000000012.jpg")
    put("v2_OpenEnded_mscoco_val2014_questions.json", vqav2_questions("val2014"))
    notes = [
        {"question_id": 9001, "answer_type": "number", "answers": ten_answers(**{"2": 3, "3": 7})},
        {"question_id": 9002, "answer_type": "yes/no", "answers": ten_answers(yes=10)},
        {"question_id": 12001, "answer_type": "other", "answers": ten_answers(dog=1, cat=9)},
    ]
    return put("v2_mscoco_val2014_annotations.json", {"annotations": notes}).parent


def test_vqav2_metrics_and_submission(vqav2: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("vqav2", vqav2)
    first, second, _ = benchmark.questions
    assert first.prompt == f"How many?\n{SHORT}"
    assert first.image == second.image == vqav2 / "val2014" / "COCO_val2014_000000000009.jpg"
    answers = {"9001": "Two.", "9002": "Yes", "12001": "a Dog"}
    figures = benchmark.measure(answers)
    assert figures["by_answer_type"] == {
        "number": pytest.approx(0.9), "other": pytest.approx(0.3), "yes/no": pytest.approx(1)
    }  # fmt: skip
    assert figures["accuracy"] == pytest.approx((0.9 + 1 + 0.3) / 3)
    (file,) = benchmark.write(answers, tmp_path, "m")
    assert json.loads(file.read_text()) == [
        {"question_id": 9001, "answer": "2"},
        {"question_id": 9002, "answer": "yes"},
        {"question_id": 12001, "answer": "dog"},
    ]


def test_vqav2_without_annotations_writes_a_submission(put: Put, tmp_path: Path) -> None:
    put("test2015/COCO_test2015_000000000009.jpg")
    put("test2015/COCO_test2015_000000000012.jpg")
    whole = vqav2_questions("test2015")
    whole["questions"].append({"question_id": 77, "image_id": 7, "question": "Where?"})
    put("v2_OpenEnded_mscoco_test2015_questions.json", whole)
    file = put("v2_OpenEnded_mscoco_test-dev2015_questions.json", vqav2_questions("test-dev2015"))
    with pytest.raises(DataError, match="several files match"):
        open_benchmark("vqav2", file.parent)
    benchmark = open_benchmark("vqav2", file, limit=1)
    assert benchmark.measure({"9001": "2"}) == {}
    (written,) = benchmark.write({"9001": "Two"}, tmp_path, "m")
    # The server of test-dev wants every question of test2015.
    assert json.loads(written.read_text()) == [
        {"question_id": 9001, "answer": "2"},
        {"question_id": 9002, "answer": ""},
        {"question_id": 12001, "answer": ""},
        {"question_id": 77, "answer": ""},
    ]


def test_invalid_vqav2_files_are_rejected(vqav2: Path, put: Put) -> None:
    with pytest.raises(DataError, match=r"1 of 3 .*answer \(12001\)"):
        open_benchmark("vqav2", vqav2).measure({"9001": "", "9002": ""})
    (vqav2 / "val2014" / "COCO_val2014_000000000012.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 .*000000000012\.jpg \(question 12001\)"):
        open_benchmark("vqav2", vqav2)
    put("val2014/COCO_val2014_000000000012.jpg")
    put("v2_mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": 9001, "answers": ten_answers(two=10)}]})  # fmt: skip
    with pytest.raises(DataError, match=r"2 of 3 .*annotation.*9002"):
        open_benchmark("vqav2", vqav2)
    put("v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 9001, "answers": ten_answers(two=9)}]})
    with pytest.raises(DataError, match=r"question 9001 .*9 answers.*10"):
        open_benchmark("vqav2", vqav2)
    twice = vqav2_questions("val2014")
    twice["questions"].append(twice["questions"][0])
    put("v2_OpenEnded_mscoco_val2014_questions.json", twice)
    with pytest.raises(DataError, match="id 9001"):
        open_benchmark("vqav2", vqav2)


def vizwiz_rows() -> list[dict[str, Any]]:
    # VizWiz' answers have no id, so that equal ones are equal entries: each counts nevertheless.
    return [
        {"image": "VizWiz_val_0.jpg", "question": "What is this?", "answer_type": "unanswerable",
         "answers": [{"answer": "unanswerable"}] * 2 + [{"answer": "cup"}] * 8},
        {"image": "VizWiz_val_1.jpg", "question": "Color?", "answer_type": "other",
         "answers": [{"answer": "grey"}] * 3 + [{"answer": "gray"}] * 7},
    ]  # fmt: skip


def test_vizwiz_metrics_and_submission(put: Put, tmp_path: Path) -> None:
    put("val/VizWiz_val_0.jpg")
    put("val/VizWiz_val_1.jpg")
    root = put("Annotations/val.json", vizwiz_rows()).parents[1]
    for path in (root, root / "Annotations" / "val.json"):
        benchmark = open_benchmark("vizwiz", path)
        assert benchmark.questions[0].prompt == (
            f"What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}"
        )
    answers = {"VizWiz_val_0.jpg": "Unanswerable", "VizWiz_val_1.jpg": "Grey."}
    figures = benchmark.measure(answers)
    assert figures["by_answer_type"] == {"unanswerable": pytest.approx(0.6), "other": pytest.approx(0.9)}
    assert figures["accuracy"] == pytest.approx(0.75)
    (file,) = benchmark.write(answers, tmp_path, "m")
    assert json.loads(file.read_text()) == [
        {"image": "VizWiz_val_0.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_val_1.jpg", "answer": "grey"},
    ]


def test_vizwiz_needs_answers_of_all_or_no_questions(put: Put) -> None:
    put("test/VizWiz_val_0.jpg")
    put("test/VizWiz_val_1.jpg")
    rows = vizwiz_rows()
    del rows[0]["answers"]
    file = put("test.json", rows)
    with pytest.raises(DataError, match="1 of 2 entries"):
        open_benchmark("vizwiz", file)
    del rows[1]["answers"]
    benchmark = open_benchmark("vizwiz", put("test.json", rows))
    assert benchmark.measure({question.id: "cup" for question in benchmark.questions}) == {}
    put("test.json", [rows[0], rows[0]])
    with pytest.raises(DataError, match=r"VizWiz_val_0\.jpg"):
        open_benchmark("vizwiz", file)


@pytest.fixture
def textvqa(put: Put) -> Path:
    put("train_images/0a.jpg")
    rows = [
        {"question_id": 1, "image_id": "0a", "question": "what brand is it?",
         "answers": ["Men's Own"] * 3 + ["own"] * 7},
        {"question_id": 2, "image_id": "0a", "question": "what year?", "answers": ["1,999"] * 5 + ["?"] * 5},
    ]  # fmt: skip
    tokens = [{"image_id": "0a", "ocr_tokens": ["MEN'S", "OWN"]}]
    put("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
    return put("TextVQA_0.5.1_val.json", {"data": rows}).parent


def test_textvqa_metrics(textvqa: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("textvqa", textvqa)
    assert benchmark.questions[0].prompt == f"What brand is it?\n{SHORT}"
    answers = {"1": "the men 's own", "2": "1999"}
    assert benchmark.measure(answers)["accuracy"] == pytest.approx((0.9 + 1) / 2)
    (file,) = benchmark.write(answers, tmp_path, "m")
    assert json.loads(file.read_text())[1] == {"question_id": 2, "answer": "1999"}


def test_textvqa_with_ocr_tokens(textvqa: Path, put: Put) -> None:
    benchmark = open_benchmark("textvqa-ocr", textvqa)
    assert benchmark.questions[0].prompt == f"What brand is it?\nReference OCR token: MEN'S, OWN\n{SHORT}"
    put("TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "0b", "ocr_tokens": []}]})
    with pytest.raises(DataError, match=r"2 images .*0a"):
        open_benchmark("textvqa-ocr", textvqa)
