"""``vitsplit data check --task vqa``."""

import json
import shutil

import pytest

from vitsplit.tasks import check_data


@pytest.fixture
def questions(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    return tmp_path / "data"


def test_statistics_of_a_set(questions):
    report = check_data(questions, "vqa")
    assert not report.findings and report.format == "questions"
    lines = [json.loads(line) for line in (questions / "questions_val.jsonl").read_text().splitlines()]
    facts = report.splits["val"].facts
    assert facts["questions"] == len(lines)
    assert facts["different answers"] == len({line["answer"] for line in lines})
    assert report.splits["val"].images == len({line["image"] for line in lines})


def test_invalid_samples_are_named_with_their_lines(questions):
    file = questions / "questions_train.jsonl"
    good = file.read_text().splitlines()
    entry = json.loads(good[0])
    bad = [json.dumps(entry | {"image": "gone.jpg"}), "{broken", json.dumps(entry | {"answer": " "})]
    file.write_text("\n".join([*good, *bad]) + "\n")
    report = check_data(questions, "vqa")
    found = {finding.kind: finding.message for finding in report.errors}
    assert found.keys() == {"no such image", "invalid lines", "no answer"}
    assert f"questions_train.jsonl:{len(good) + 1}" in found["no such image"] and "gone.jpg" in found["no such image"]
    assert f"questions_train.jsonl:{len(good) + 2}" in found["invalid lines"]


def test_an_unreadable_image_is_reported(questions):
    image = next((questions / "images" / "val").iterdir())
    image.write_bytes(b"no image")
    (finding,) = check_data(questions, "vqa").errors
    assert finding.kind == "unreadable image" and finding.file == str(image)


def test_an_image_in_two_splits_is_reported(questions):
    train, val = (next((questions / "images" / split).iterdir()) for split in ("train", "val"))
    shutil.copy(train, val)
    (finding,) = check_data(questions, "vqa").errors
    assert finding.kind == "image in two splits"
