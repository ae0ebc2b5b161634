"""GQA, ScienceQA and DAQUAR: files, prompts, metrics worked out by hand, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.vqa.benchmarks import open_benchmark
from vitsplit.tasks.vqa.benchmarks.scienceqa import read_letter

Put = Callable[..., Path]
LETTER = "Answer with the option's letter from the given choices directly."


def test_gqa_metrics(put: Put, tmp_path: Path) -> None:
    put("images/n1.jpg")
    questions = {
        "201": {"question": "Who?", "imageId": "n1", "answer": "boy", "types": {"structural": "query"}},
        "202": {"question": "Is it?", "imageId": "n1", "answer": "yes", "types": {"structural": "verify"}},
        "203": {"question": "Is it?", "imageId": "n1", "answer": "no", "types": {"structural": "logical"}},
    }
    file = put("questions1.2/testdev_balanced_questions.json", questions)
    benchmark = open_benchmark("gqa", tmp_path)
    answers = {"201": "Boy.", "202": "yes it is", "203": "No"}
    assert benchmark.measure(answers) == {"accuracy": pytest.approx(2 / 3), "open": 1, "binary": 0.5}
    (written,) = benchmark.write(answers, tmp_path, "m")
    assert json.loads(written.read_text())[0] == {"questionId": "201", "prediction": "boy"}
    assert open_benchmark("gqa", file).questions == benchmark.questions
    put("questions1.2/testdev_balanced_questions.json", {"204": {"question": "Who?", "imageId": "n1"}})
    with pytest.raises(DataError, match=r"question 204 .*'answer'"):
        open_benchmark("gqa", tmp_path)
    file.write_text('{"1": {}, "1": {}}')
    with pytest.raises(DataError, match="'1'"):
        open_benchmark("gqa", tmp_path)
    file.write_text("{}")
    with pytest.raises(DataError, match="no questions"):
        open_benchmark("gqa", tmp_path)


@pytest.mark.parametrize(
    ("answer", "strict", "lenient"),
    [
        ("B", "B", "B"),
        ("B. A dog", "B", "B"),
        ("B. ", "B", "B"),
        ("B.", None, None),  # no space after the period
        ("I think. The answer is C.", "C", "C"),
        ("The answer is C because", "C", "C"),  # any character ends it
        ("The answer is C", None, "C"),
        ("The answer is A. No: The answer is C.", None, "A"),
        ("The answer is Z. Or: The answer is C.", None, "C"),  # strictly, any capital letter is one
        (" B ", None, "B"),
        ("B\nbecause", None, "B"),
        (" B\n", None, None),
        ("The answer is", None, None),
        ("D", None, None),  # there are three options
        ("D. a dog", None, None),
        ("a dog", None, None),
        ("", None, None),
    ],
)
def test_option_letters_are_parsed_as_in_llava(answer: str, strict: str | None, lenient: str | None) -> None:
    assert (read_letter(answer, 3), read_letter(answer, 3, lenient=True)) == (strict, lenient)


@pytest.fixture
def science(put: Put) -> Path:
    put("images/test/5/image.png")
    put("images/test/8/image.png")
    problems = {
        "5": {"question": "Which?", "choices": ["ice", "sun"], "answer": 1, "hint": "Look.", "image": "image.png"},
        "6": {"question": "Why?", "choices": ["a", "b", "c"], "answer": 0, "hint": "", "image": None},
        "7": {"question": "Not asked", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None},
        "8": {"question": "How?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": "image.png"},
    }
    put("pid_splits.json", {"train": ["7"], "test": ["5", "6", "8"]})
    return put("problems.json", problems).parent


def test_scienceqa_metrics(science: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("scienceqa", science)
    first, second, _ = benchmark.questions
    assert first.prompt == f"Context: Look.\nWhich?\nA. ice\nB. sun\n{LETTER}"
    assert (first.image, second.image) == (science / "images/test/5/image.png", None)
    answers = {"5": "B", "6": "The answer is A.", "8": "C"}
    assert benchmark.measure(answers) == {
        "accuracy": pytest.approx(2 / 3), "img_accuracy": 0.5, "unread": pytest.approx(1 / 3)
    }  # fmt: skip
    (file,) = benchmark.write(answers, tmp_path, "m")
    assert json.loads(file.read_text())["results"] == {"5": 1, "6": 0, "8": -1}
    responses = {"5": " B ", "6": "The answer is A", "8": "A"}
    assert benchmark.measure(responses) | {"img_accuracy": 0} == {
        "accuracy": pytest.approx(1 / 3), "img_accuracy": 0, "unread": pytest.approx(2 / 3)
    }  # fmt: skip
    lenient = open_benchmark("scienceqa-lenient", science)
    assert lenient.name == "scienceqa-lenient" and lenient.measure(responses)["accuracy"] == 1
    assert open_benchmark("scienceqa-img-lenient", science).measure(responses)["img_accuracy"] == 1
    with_images = open_benchmark("scienceqa-img", science)
    assert [question.id for question in with_images.questions] == ["5", "8"]
    assert with_images.measure({"5": "B", "8": "A"})["img_accuracy"] == 1


def test_scienceqa_from_the_llava_file(science: Path, put: Put) -> None:
    rows = [
        {"id": "5", "image": "5/image.png", "conversations": [
            {"from": "human", "value": "<image>\nWhich?\nA. ice\nB. sun"},
            {"from": "gpt", "value": "The answer is B."}]},
        {"id": "6", "conversations": [{"from": "human", "value": "Why?\nA. a"}, {"from": "gpt", "value": "?"}]},
    ]  # fmt: skip
    file = put("llava_test_CQM-A.json", rows)
    for path in (science, file):
        benchmark = open_benchmark("scienceqa", path)
        assert [question.prompt for question in benchmark.questions] == [
            f"Which?\nA. ice\nB. sun\n{LETTER}", f"Why?\nA. a\n{LETTER}"
        ]  # fmt: skip
        assert benchmark.measure({"5": "B", "6": "A"})["accuracy"] == 1  # the answers are of problems.json
    (science / "problems.json").unlink()
    with pytest.raises(DataError, match=r"problem 6 .*problems.json"):
        open_benchmark("scienceqa", science)
    put("llava_test_CQM-A.json", rows[:1])
    assert open_benchmark("scienceqa", science).measure({"5": "A"}) == {"accuracy": 0, "img_accuracy": 0, "unread": 0}


def test_invalid_scienceqa_files_are_rejected(science: Path, put: Put) -> None:
    put("pid_splits.json", {"test": ["5", "99"]})
    with pytest.raises(DataError, match=r"problem 99 of pid_splits.json"):
        open_benchmark("scienceqa", science)
    put("pid_splits.json", {"test": ["5", "5"]})
    with pytest.raises(DataError, match="id 5 is not unique"):
        open_benchmark("scienceqa", science)
    put("pid_splits.json", {"test": ["5"]})
    (science / "images/test/5/image.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 .*image"):
        open_benchmark("scienceqa", science)


def test_daquar_metrics(put: Put, tmp_path: Path) -> None:
    put("images/val/1.jpg")
    rows = [
        {"image": "1.jpg", "question": " what is on the desk? ", "answer": "book, lamp, cup"},
        {"image": "1.jpg", "question": "how many?", "answer": "4"},
        {"image": "1.jpg", "question": "what colour?", "answer": "red, blue"},
        {"image": "1.jpg", "question": "what else?", "answer": "bed"},
    ]
    put("daquar_train.jsonl", rows[:1])
    file = put("daquar_val.jsonl", rows)
    benchmark = open_benchmark("daquar", tmp_path, hint="Be short.")
    assert benchmark.questions[0].prompt == "what is on the desk? Be short."
    assert open_benchmark("daquar", file).questions[0].prompt == "what is on the desk?"
    figures = benchmark.measure({"1": "lamp, chair", "2": "4.", "3": "Blue, red", "4": ""})
    # overlaps: {lamp} of 2 predicted and 3 true: 1/3; 1; 1; 0
    assert figures == {"exact_match": 0.25, "set_match": 0.5, "set_overlap": pytest.approx((1 / 3 + 1 + 1 + 0) / 4)}
    put("daquar_val.jsonl", [{"image": "1.jpg", "question": "?"}])
    with pytest.raises(DataError, match=r"daquar_val\.jsonl: line 1 .*'answer'"):
        open_benchmark("daquar", tmp_path)


def test_invalid_names_and_limits_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'vqa'. Benchmarks: daquar, gqa,"):
        open_benchmark("vqa", tmp_path)
    with pytest.raises(ConfigError, match="--limit 0"):
        open_benchmark("gqa", tmp_path, limit=0)
    with pytest.raises(DataError, match="not found"):
        open_benchmark("gqa", tmp_path / "nowhere")
