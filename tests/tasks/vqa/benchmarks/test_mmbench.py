"""MMBench: circular evaluation on cases worked out by hand, its table, and its sheet as openpyxl reads it."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from PIL import Image

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.vqa.benchmarks import open_benchmark
from vitsplit.tasks.vqa.benchmarks.mmbench import read_option

COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category",
           "comment", "split"]  # fmt: skip
LETTER = "Answer with the option's letter from the given choices directly."
Write = Callable[[list[dict[str, Any]]], Path]


def picture(color: str) -> str:
    file = io.BytesIO()
    # Noise, so that the cell is longer than what the csv module reads by itself.
    Image.effect_noise((400, 400), 90).save(file, "PNG")
    assert len(file.getvalue()) > 131072
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "mmbench_dev_20230712.tsv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, delimiter="\t")
            table.writeheader()
            table.writerows(rows)
        return path

    return to_file


@pytest.fixture(scope="module")
def image() -> str:
    return picture("red")


def row(index: int, options: str, answer: str, image: str, **more: str) -> dict[str, Any]:
    words = options.split()
    return {
        "index": index, "question": f"Which {index % 1000000}?", "answer": answer, "category": "color",
        "l2-category": "perception", "image": image, "split": "dev", **dict(zip("ABCD", words, strict=False)), **more,
    }  # fmt: skip


def test_missing_rotations_are_generated(write: Write, image: str, tmp_path: Path) -> None:
    path = write([
        row(241, "red green blue", "B", image, hint="Look."),
        row(252, "cat dog", "A", image, category="animal", **{"l2-category": "reasoning"}),
    ])  # fmt: skip
    benchmark = open_benchmark("mmbench", path)
    prompts = {question.id: question.prompt for question in benchmark.questions}
    assert prompts == {
        "241": f"Look.\nWhich 241?\nA. red\nB. green\nC. blue\n{LETTER}",
        "1000241": f"Look.\nWhich 241?\nA. green\nB. blue\nC. red\n{LETTER}",
        "2000241": f"Look.\nWhich 241?\nA. blue\nB. red\nC. green\n{LETTER}",
        "252": f"Which 252?\nA. cat\nB. dog\n{LETTER}",
        "1000252": f"Which 252?\nA. dog\nB. cat\n{LETTER}",
    }
    # Question 241 is correct in every rotation; 252 always answers A, which is correct once.
    answers = {"241": "B", "1000241": "A. green", "2000241": "(C)", "252": "A", "1000252": "A"}
    figures = benchmark.measure(answers)
    assert figures == {
        "accuracy": 0.5, "single_pass_accuracy": 1.0, "by_category": {"animal": 0, "color": 1},
        "by_l2_category": {"perception": 1, "reasoning": 0}, "unread": 0, "questions": 2, "asked": 5,
    }  # fmt: skip
    assert benchmark.measure(answers | {"2000241": "green or blue"})["unread"] == pytest.approx(1 / 5)
    assert benchmark.measure(answers | {"2000241": "green or blue"})["accuracy"] == 0
    assert {question.id for question in benchmark.take(1).questions} == {"241", "1000241", "2000241"}
    # The server expects only the rows of the file.
    (file,) = benchmark.write(answers, tmp_path, "m")
    assert [cells[0].value for cells in openpyxl.load_workbook(file).active.iter_rows(min_row=2)] == [241, 252]


def test_rotations_of_the_file_are_used(write: Write, image: str) -> None:
    path = write([
        row(7, "red green", "B", image),
        row(8, "cat dog", "A", image),
        row(1000007, "green red", "A", "7"),  # the image is that of row 7
        row(1000008, "dog cat", "B", image),
    ])  # fmt: skip
    benchmark = open_benchmark("mmbench", path)
    questions = {question.id: question for question in benchmark.questions}
    assert questions["1000007"].image == questions["7"].image
    assert len(questions) == 4
    figures = benchmark.measure({"7": "B", "1000007": "A", "8": "B", "1000008": "B"})
    assert (figures["accuracy"], figures["single_pass_accuracy"]) == (0.5, 0.5)


def test_the_sheet_has_the_columns_of_llava(write: Write, image: str, tmp_path: Path) -> None:
    path = write([row(7, "red =1+1", "B", image, source="web", comment="x")])
    benchmark = open_benchmark("mmbench", path)
    (file,) = benchmark.write({"7": "=B\x07", "1000007": "A"}, tmp_path, "m")
    rows = list(openpyxl.load_workbook(file).active.iter_rows(values_only=True))
    assert rows == [
        ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split"),
        (7, "Which 7?", "red", "=1+1", None, None, "=B", "B", "dev"),
    ]
    assert openpyxl.load_workbook(file).active["G2"].data_type == "s"  # no formula


def test_a_split_without_answers_has_no_metrics(write: Write, image: str) -> None:
    benchmark = open_benchmark("mmbench", write([row(7, "red green", "", image)]))
    assert benchmark.measure({"7": "A", "1000007": "A"}) == {}


def test_the_chinese_benchmark_uses_a_chinese_prompt(write: Write, image: str) -> None:
    benchmark = open_benchmark("mmbench-cn", write([row(7, "red green", "A", image)]))
    assert benchmark.questions[0].prompt == "Which 7?\nA. red\nB. green\n请直接回答选项字母。"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(b)", None),
        ("The answer is (B).", "B"),
        ("A", "A"),
        ("A red ball lies there", "A"),  # an article here; but the text of option A is in it
        ("A ball lies there", None),
        ("A or B", None),
        ("Green", "B"),
        ("red and green", None),
        ("D", None),
        ("", None),
    ],
)
def test_option_letters_are_parsed(answer: str, letter: str | None) -> None:
    assert read_option(answer, ("red", "green", "blue")) == letter


def test_invalid_files_are_rejected(write: Write, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = row(7, "red green", "A", image)
    for rows, expected in (
        ([good, good], "id 7 is not unique"),
        ([good | {"image": "%%"}], "image of row 7"),
        ([good | {"image": "99"}], "row 7 has no image"),
        ([good | {"answer": "C"}], "row 7 has 2 options and the answer 'C'"),
        ([good, row(8, "a b", "", image)], "1 of 2 rows have no answer"),
        ([row(1000007, "red green", "A", image)], "row 1000007 is a rotation of 7, which is not in the file"),
        ([], "no columns"),
    ):
        with pytest.raises(DataError, match=expected):
            open_benchmark("mmbench", write(rows))
    path = write([good])
    with pytest.raises(DataError, match=r"1 of 2 .*answer \(1000007\)"):
        open_benchmark("mmbench", path).measure({"7": "A"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="openpyxl"):
        open_benchmark("mmbench", path)
