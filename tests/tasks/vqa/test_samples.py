"""Files of questions and conversations: valid samples are read, and invalid ones are reported."""

import json
import os

import pytest
from PIL import Image

from vitsplit.errors import DataError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.prompts import Turn
from vitsplit.tasks.vqa.samples import describe_problems, open_samples, read_samples

GOOD = {"image": "a.png", "question": "what is it?", "answer": "a ball"}
TALK = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a ball"}]


@pytest.fixture
def data(tmp_path):
    for name in "abcdef":
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6)).save(path)
    return tmp_path


def lines(data, rows, name="train.jsonl"):
    (data / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return data / name


def conversation_file(data, entries, name="train.json"):
    (data / name).write_text(json.dumps(entries), encoding="utf-8")
    return data / name


def read(file, **settings):
    return read_samples(file, "train", VqaConfig(**settings), file.parent)


def test_questions_on_one_image_are_one_sample(data):
    rows = [GOOD, GOOD | {"image": "b.png"}, GOOD | {"question": "where?", "answer": "left"}]
    rows.append({"image": None, "question": "one and one?", "answer": 2})
    found = read(lines(data, rows))
    assert found.problems == ()
    first, second, text = found.samples
    assert first.image == data / "images/a.png"
    assert first.conversations == ((Turn("what is it?", "a ball"),), (Turn("where?", "left"),))
    assert (second.image, len(second.conversations)) == (data / "images/b.png", 1)
    assert (text.image, text.conversations) == (None, ((Turn("one and one?", "2"),),))


@pytest.mark.parametrize("settings", [{"share_image": False}, {"conversation": "plain"}])
def test_questions_without_a_shared_image(data, settings):
    found = read(lines(data, [GOOD, GOOD | {"question": "where?"}]), **settings)
    assert [sample.name for sample in found.samples] == ["train.jsonl:1", "train.jsonl:2"]


def test_plain_requires_an_image(data):
    rows = [GOOD, {"image": None, "question": "one and one?", "answer": "2"}]
    found = read(lines(data, rows), conversation="plain")
    assert len(found.samples) == 1
    assert [(problem.kind, problem.where) for problem in found.problems] == [
        ("no image, which --conversation plain requires", "train.jsonl:2")
    ]
    assert len(read(lines(data, rows)).samples) == 2


def test_a_hint_is_added_to_questions(data):
    (sample,) = read(lines(data, [GOOD]), answer_hint="Answer in a word.").samples
    assert sample.conversations[0][0].question == "what is it? Answer in a word."


def test_lines_can_contain_unicode_line_separators(data):
    odd = GOOD | {"answer": "a\u2028ball\x85or\x0bso"}
    found = read(lines(data, [odd, GOOD | {"image": "b.png"}]))
    assert found.problems == ()
    assert found.samples[0].conversations[0][0].answer == odd["answer"]


@pytest.mark.parametrize(("row", "kind"), [
    (GOOD | {"image": "none.png"}, "no such image"),
    (GOOD | {"image": ""}, "no such image"),
    (GOOD | {"answer": " "}, "no answer"),
    (GOOD | {"answer": None}, "no answer"),
    ({"image": "a.png", "question": "what?"}, "invalid lines"),
    ({"img": "a.png", "question": "what?", "answer": "a"}, "invalid lines"),
    ({"image": "a.png", "answer": "a"}, "invalid lines"),
    (GOOD | {"question": None}, "invalid lines"),
    ([1, 2], "invalid lines"),
    ("text", "invalid lines"),
    (7, "invalid lines"),
    (GOOD | {"question": True}, "invalid lines"),
    (GOOD | {"answer": ["a"]}, "invalid lines"),
    (GOOD | {"answer": float("nan")}, "invalid lines"),
    (GOOD | {"question": "x" * (2 << 20)}, "invalid lines"),
    (GOOD | {"image": "x" * 900}, "no such image"),
])  # fmt: skip
def test_invalid_lines_are_named_and_rejected_or_skipped(data, row, kind, caplog):
    file = lines(data, [GOOD, row, GOOD | {"image": "b.png"}])
    (problem,) = read(file).problems
    assert problem.kind == kind and problem.where.startswith("train.jsonl:2")
    with pytest.raises(DataError, match=rf"1 invalid samples: 1 with {kind} \(train.jsonl:2.*--bad-samples skip"):
        open_samples(data, "train", VqaConfig())
    kept = open_samples(data, "train", VqaConfig(bad_samples="skip"))
    assert [sample.image.name for sample in kept.samples] == ["a.png", "b.png"]
    assert "train.jsonl:2" in caplog.text and "skipped" in caplog.text


def test_a_line_that_is_not_json_is_named(data):
    file = data / "train.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n{broken\n")
    (problem,) = read(file).problems
    assert problem.kind == "invalid lines" and problem.where.startswith("train.jsonl:3")


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "{" + '"a": 1,' * 2 + '"a": 1}', '{"question": "\\ud800"}', "9" * 9999]
)
def test_lines_that_crash_the_json_parser_are_invalid(data, line):
    file = data / "train.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    (problem,) = read(file).problems
    assert problem.kind == "invalid lines" and problem.where.startswith("train.jsonl:2")


@pytest.mark.parametrize("name", ["../secret.png", "/", "b/../../secret.png", 7, True, ["a.png"], "a\nb.png"])
@pytest.mark.parametrize("write", [lines, conversation_file])
def test_images_outside_the_folder_require_a_flag(tmp_path, name, write):
    data = tmp_path / "set"
    (data / "images" / "b").mkdir(parents=True)
    for path in (tmp_path / "secret.png", data / "secret.png", data / "images" / "a.png"):
        Image.new("RGB", (8, 6)).save(path)
    name = str(tmp_path / "secret.png") if name == "/" else name
    rows = [{"image": name, "question": "what?", "answer": "a", "conversations": TALK}]
    file = write(data, rows)
    found = read(file)
    assert not found.samples and "--allow-outside" in found.problems[0].kind
    allowed = read(file, allow_outside=True)
    is_there = isinstance(name, str) and name.endswith("secret.png")
    assert len(allowed.samples) == is_there
    if is_there:
        assert allowed.samples[0].image.resolve() in (tmp_path / "secret.png", data / "secret.png")


def test_pipes_are_rejected_without_blocking(data):
    os.mkfifo(data / "train.jsonl")
    for name in ("train.jsonl", "train.json"):
        if not (data / name).exists():
            os.mkfifo(data / name)
        with pytest.raises(DataError, match="not a regular file"):
            read(data / name)


def test_problems_are_counted_by_kind(data):
    rows = [GOOD | {"image": "x"}, GOOD | {"image": "y"}, GOOD | {"answer": ""}, GOOD]
    text = describe_problems(read(lines(data, rows)))
    assert "3 invalid samples" in text and "2 with no such image" in text and "1 with no answer" in text


def test_llava_conversations(data):
    more = [{"from": "human", "value": "where?"}, {"from": "gpt", "value": "left"}]
    text = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day"}]
    entries = [
        {"id": "7", "image": "a.png", "conversations": TALK + more},
        {"image": "a.png", "conversations": [{"from": "human", "value": "what is it?\n<image>"}, TALK[1]]},
        {"conversations": text},
        {"conversations": [{"from": "gpt", "value": "I begin"}, *text]},
    ]
    found = read(conversation_file(data, entries))
    assert found.problems == ()
    whole, behind, alone, begun = found.samples
    assert whole.conversations == ((Turn("what is it?", "a ball"), Turn("where?", "left")),)
    assert "7" in whole.name and whole.image == data / "images/a.png"
    assert behind.conversations == ((Turn("what is it?", "a ball"),),), "the image goes first"
    assert alone.image is None and alone.conversations == begun.conversations == ((Turn("hello", "good day"),),)


@pytest.mark.parametrize(("entry", "kind"), [
    ({"image": "a.png"}, "invalid conversations"),
    ("text", "invalid conversations"),
    ({"image": "a.png", "conversations": ["a", "b"]}, "invalid conversations"),
    ({"image": "a.png", "conversations": None}, "invalid conversations"),
    ({"image": "a.png", "conversations": [TALK[0], {"from": "gpt", "value": None}]}, "invalid conversations"),
    ({"image": "a.png", "conversations": []}, "do not alternate"),
    ({"image": "a.png", "conversations": TALK[:1]}, "do not alternate"),
    ({"image": "a.png", "conversations": [*TALK, TALK[1], TALK[1]]}, "do not alternate"),
    ({"image": "a.png", "conversations": TALK[1:]}, "do not alternate"),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "what?"}, TALK[1]]}, "without exactly one"),
    ({"image": "a.png", "conversations": TALK * 2}, "without exactly one"),
    ({"conversations": TALK}, "but no image"),
    ({"image": "none.png", "conversations": TALK}, "no such image"),
    ({"image": "a.png", "conversations": [TALK[0], {"from": "gpt", "value": " "}]}, "no answer"),
])  # fmt: skip
def test_invalid_conversations_are_named_and_rejected_or_skipped(data, entry, kind, caplog):
    good = {"image": "a.png", "conversations": TALK}
    file = conversation_file(data, [good, entry])
    (problem,) = read(file).problems
    assert kind in problem.kind and problem.where.startswith("train.json[1]")
    with pytest.raises(DataError, match=r"1 invalid samples: .*train\.json\[1\].*--bad-samples skip"):
        open_samples(data, "train", VqaConfig())
    assert len(open_samples(data, "train", VqaConfig(bad_samples="skip"))) == 1
    assert "train.json[1]" in caplog.text


@pytest.mark.parametrize(("content", "expected"), [("{", "not valid JSON"), ("{}", "not a list")])
def test_a_file_without_a_list_is_rejected(data, content, expected):
    (data / "train.json").write_text(content)
    with pytest.raises(DataError, match=rf"train\.json: {expected}.*--format questions"):
        open_samples(data, "train", VqaConfig())


def test_the_layout_can_be_given(data):
    assert (
        len(
            read(
                conversation_file(data, [{"image": "a.png", "conversations": TALK}], "odd.jsonl"), format="llava"
            ).samples
        )
        == 1
    )
    assert len(read(lines(data, [GOOD], "odd.json"), format="questions").samples) == 1


ROWS = [GOOD | {"image": f"{name}.png"} for name in "abcdef"]
KEPT, LEFT = ["c.png", "f.png"], ["a.png", "b.png", "d.png", "e.png"]


@pytest.mark.parametrize("how", ["folder", "file", "train_file"])
def test_without_a_validation_file_every_nth_sample_is_held_out(data, how):
    file = lines(data, ROWS)
    config = VqaConfig(val_every=3, train_file="train.jsonl" if how == "train_file" else None)
    where = file if how == "file" else data
    names = {split: [s.image.name for s in open_samples(where, split, config).samples] for split in ("train", "val")}
    assert names == {"train": LEFT, "val": KEPT}


@pytest.mark.parametrize("share_image", [True, False])
def test_questions_on_one_image_are_in_one_split(data, share_image):
    lines(data, [ROWS[index] | {"question": question} for question in ("what?", "who?") for index in (2, 0, 1, 3)])
    config = VqaConfig(val_every=2, share_image=share_image)
    images = {split: {s.image.name for s in open_samples(data, split, config).samples} for split in ("train", "val")}
    assert images == {"train": {"c.png", "b.png"}, "val": {"a.png", "d.png"}}
    assert sum(open_samples(data, split, config).num_questions for split in ("train", "val")) == 8


@pytest.mark.parametrize("how", ["found", "named", "beside"])
def test_with_a_validation_file_nothing_is_held_out(data, how):
    file = lines(data, ROWS[:4])
    lines(data, ROWS[4:], "val.jsonl" if how == "found" else "other.jsonl")
    config = VqaConfig(val_every=2, val_file=None if how == "found" else "other.jsonl")
    where = file if how == "beside" else data
    names = {split: [s.image.name for s in open_samples(where, split, config).samples] for split in ("train", "val")}
    assert names == {"train": ["a.png", "b.png", "c.png", "d.png"], "val": ["e.png", "f.png"]}


def test_too_few_samples_to_hold_one_out(data):
    lines(data, ROWS)
    with pytest.raises(DataError, match=r"val.*--val-every"):
        open_samples(data, "val", VqaConfig(val_every=7))


def test_several_files_are_selected_by_name(data):
    lines(data, ROWS[:1], "a_train.jsonl")
    lines(data, ROWS[1:], "b_train.jsonl")
    with pytest.raises(DataError, match=r"a_train\.jsonl, b_train\.jsonl.*--train-file"):
        open_samples(data, "train", VqaConfig())
    config = VqaConfig(train_file="b_train.jsonl")
    assert open_samples(data, "train", config).samples[0].image.name == "b.png"


def test_missing_files_are_named(data):
    with pytest.raises(DataError, match=r"train samples.*--train-file"):
        open_samples(data, "train", VqaConfig())
    with pytest.raises(DataError, match=r"not found.*--val-file"):
        open_samples(data, "val", VqaConfig(val_file="x.jsonl"))
    with pytest.raises(DataError, match="not found"):
        open_samples(data / "nowhere", "train", VqaConfig())


def test_an_image_folder_can_be_given(data):
    (data / "images").rename(data / "pictures")
    with pytest.raises(DataError, match="no such image"):
        open_samples(data, "train", VqaConfig(train_file=lines(data, ROWS).name))
    found = open_samples(data, "train", VqaConfig(image_folder="pictures"))
    assert found.samples[0].image == data / "pictures/a.png"
