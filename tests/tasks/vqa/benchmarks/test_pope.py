"""POPE: parsing of yes and no, metrics worked out by hand, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.benchmarks import open_benchmark
from vitsplit.tasks.vqa.benchmarks.pope import says_yes

Put = Callable[..., Path]


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no, there is none", False),
        ("There is not a dog", False),
        ("Yes. There is no cat", True),  # only the first sentence counts
        ("NO", True),  # LLaVA's rule is case-sensitive
        ("Nothing", True),
        ("", True),
        ("well, no.", False),
    ],
)
def test_yes_and_no_are_parsed(answer: str, yes: bool) -> None:
    assert says_yes(answer) is yes


def rows(labels: list[str]) -> list[dict[str, object]]:
    return [
        {"question_id": n, "image": f"COCO_val2014_{n}.jpg", "text": f"Is there thing {n}?", "label": label}
        for n, label in enumerate(labels, 1)
    ]


@pytest.fixture
def pope(put: Put) -> Path:
    for n in range(1, 6):
        put(f"val2014/COCO_val2014_{n}.jpg")
    put("coco/coco_pope_random.json", rows(["yes", "yes", "yes", "no", "no"]))
    put("coco/coco_pope_popular.json", rows(["yes", "no"]))
    return put("coco/coco_pope_adversarial.json", rows(["no", "no"])).parents[1]


def test_pope_metrics(pope: Path) -> None:
    benchmark = open_benchmark("pope", pope)
    assert benchmark.questions[0].prompt == ("Is there thing 1?\nAnswer the question using a single word or phrase.")
    responses = {"random": "yes yes no yes no", "popular": "yes no", "adversarial": "no no"}
    answers = {f"{name}/{n}": word for name, text in responses.items() for n, word in enumerate(text.split(), 1)}
    figures = benchmark.measure(answers)
    # random: 2 hits, 1 missed, 1 false positive, 1 true negative
    assert figures["by_category"]["random"] == {
        "accuracy": 3 / 5, "precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3), "yes_share": 3 / 5, "questions": 5,
    }  # fmt: skip
    assert figures["by_category"]["popular"]["f1"] == 1
    assert figures["by_category"]["adversarial"] == {
        "accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0, "questions": 2,
    }  # fmt: skip
    assert figures["mean_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert figures["mean_accuracy"] == pytest.approx((0.6 + 1 + 1) / 3)


def test_precision_of_always_yes(pope: Path) -> None:
    benchmark = open_benchmark("pope", pope)
    figures = benchmark.measure({question.id: "Yes" for question in benchmark.questions})["by_category"]["random"]
    assert (figures["precision"], figures["recall"], figures["yes_share"]) == (0.6, 1, 1)


def test_the_limit_applies_per_category(pope: Path, tmp_path: Path) -> None:
    benchmark = open_benchmark("pope", pope, limit=1)
    assert [question.id for question in benchmark.questions] == ["random/1", "popular/1", "adversarial/1"]
    files = benchmark.write({"random/1": "Yes.", "popular/1": "no", "adversarial/1": "no"}, tmp_path, "m")
    assert [json.loads(file.read_text())["answer"] for file in files] == ["yes", "no", "no"]


def test_one_file_is_one_category(pope: Path) -> None:
    benchmark = open_benchmark("pope", pope / "coco" / "coco_pope_popular.json")
    assert {question.id for question in benchmark.questions} == {"popular/1", "popular/2"}


def test_invalid_files_are_rejected(pope: Path, put: Put) -> None:
    benchmark = open_benchmark("pope", pope)
    with pytest.raises(DataError, match=r"9 of 9 .*answer \(random/1"):
        benchmark.measure({})
    file = pope / "coco" / "coco_pope_popular.json"
    for content, expected in (
        (rows(["yes"]) * 2, "popular.json: id 1 is not unique"),
        (rows(["yes", "maybe"]), "line 2 has the label 'maybe'"),
        ([{"question_id": 1, "text": "a"}], "line 1 has no 'image'"),
        (rows(["yes"] * 7), r"2 of 7 questions have no image in .*val2014, such as COCO_val2014_6.jpg \(question 6\)"),
    ):
        put("coco/coco_pope_popular.json", content)
        with pytest.raises(DataError, match=expected):
            open_benchmark("pope", pope)
    file.write_text("{'a'}\n")
    with pytest.raises(DataError, match=r"popular\.json: line 1: .*JSON"):
        open_benchmark("pope", pope)
    file.unlink()
    with pytest.raises(DataError, match=r"coco_pope_popular\.json"):
        open_benchmark("pope", pope)
