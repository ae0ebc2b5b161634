import json
import os
import time

import numpy as np
import pytest
from label_files import HEIGHT, WIDTH, voc_object, write_voc

from vitsplit.errors import DataError
from vitsplit.tasks.detection.layouts import list_detection_splits, open_detection_set, recognize


def message(root):
    with pytest.raises(DataError) as caught:
        open_detection_set(root, "train")
    return str(caught.value)


def test_corners_are_one_based_and_inclusive(tmp_path):
    """As in VOC's MATLAB, where ``mask(ymin:ymax, xmin:xmax) = 1`` paints the box."""
    corners = [(1, 1, WIDTH, HEIGHT), (15, 10, 44, 19), (60, 40, 60, 40)]
    write_voc(tmp_path, {"a": [voc_object("dog", each) for each in corners]})
    data = open_detection_set(tmp_path, "train")
    sample = data.load(0)
    for (xmin, ymin, xmax, ymax), box in zip(corners, sample.boxes_N4.int().tolist(), strict=True):
        painted_HW = np.zeros((HEIGHT + 1, WIDTH + 1), bool)  # row and column 0 are never used
        painted_HW[ymin : ymax + 1, xmin : xmax + 1] = True
        ours_HW = np.zeros((HEIGHT, WIDTH), bool)
        ours_HW[box[1] : box[3], box[0] : box[2]] = True
        assert (ours_HW == painted_HW[1:, 1:]).all()
    assert recognize(tmp_path) == (tmp_path, "voc")
    assert len(data.classes) == 20 and data.classes.names[sample.labels_N[0]] == "dog"
    assert data.category_ids == tuple(range(1, 21)) and sample.masks_NHW is None


def test_difficult_objects_are_crowds(tmp_path):
    objects = [voc_object("cat", (2, 2, 20, 20), difficult) for difficult in (None, 0, 1)]
    write_voc(tmp_path, {"a": objects, "b": []})
    data = open_detection_set(tmp_path, "train")
    assert data.load(0).crowd_N.tolist() == [False, False, True] and len(data.load(1).boxes_N4) == 0
    truth = data.coco_truth()["annotations"]
    assert [entry["iscrowd"] for entry in truth] == [0, 0, 1] and [entry["id"] for entry in truth] == [1, 2, 3]


def test_lists_define_the_splits(tmp_path):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "d"), ("trainval", "abc")):
        write_voc(tmp_path, {name: [voc_object("cat", (2, 2, 20, 20))] for name in names}, split)
    assert list_detection_splits(tmp_path) == ("train", "val", "test")
    assert [len(open_detection_set(tmp_path, split)) for split in ("train", "val", "test", "trainval")] == [2, 1, 1, 3]


def test_custom_classes(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("vest", (2, 2, 20, 20))], "b": [voc_object("helmet", (2, 2, 20, 20))]})
    text = message(tmp_path)
    assert f"{tmp_path / 'classes.json'}: file not found, and helmet, vest" in text
    (tmp_path / "classes.json").write_text(text.split("\n")[-1])
    data = open_detection_set(tmp_path, "train")
    assert data.classes.names == ("helmet", "vest") and data.load(0).labels_N.tolist() == [1]
    (tmp_path / "classes.json").write_text(json.dumps(["vest"]))
    assert "classes out of range: 1 (object 1 (helmet): " in message(tmp_path)


def test_a_missing_size_is_read_from_the_image(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("cat", (2, 2, WIDTH, 20))]}, size=(0, 0))
    item = open_detection_set(tmp_path, "train").items[0]
    assert (item.width, item.height) == (WIDTH, HEIGHT)


def test_a_size_mismatch_is_an_error(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("cat", (2, 2, 30, 20))]}, size=(80, 50))
    with pytest.raises(DataError, match=r"a\.jpg: .*60x40 .*80x50"):
        open_detection_set(tmp_path, "train").load(0)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (voc_object("cat", (2, 2, 62, 20)), ["boxes outside their image", "x 1 to 62"]),
        (voc_object("cat", (30, 2, 20, 20)), ["invalid boxes", "object 2 (cat): width -9"]),
        (voc_object("cat", ("x", 2, 20, 20)), ["invalid entries", "object 2 (cat): no bndbox with numbers xmin"]),
        ("<object><name>cat</name></object>", ["no bndbox"]),
        ("\n<object>", ["not valid XML", "line 2"]),
    ],
)
def test_invalid_objects_are_named(tmp_path, entry, words):
    write_voc(tmp_path, {"a": [voc_object("cat", (2, 2, 20, 20)), entry]})
    text = message(tmp_path)
    assert str(tmp_path / "Annotations" / "a.xml") in text
    for word in words:
        assert word in text


def test_zero_based_corners_are_accepted(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("cat", (0, 0, 20, 20))]})
    assert open_detection_set(tmp_path, "train").load(0).boxes_N4.tolist() == [[0, 0, 20, 20]]


def test_missing_files_are_named(tmp_path):
    write_voc(tmp_path, {name: [voc_object("cat", (2, 2, 20, 20))] for name in "abc"})
    (tmp_path / "Annotations" / "b.xml").unlink()
    assert "missing annotation files: 1 (Annotations/b.xml)" in message(tmp_path)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    text = message(tmp_path)
    assert f"{tmp_path / 'ImageSets/Main/train.txt'}: missing images: 1 (JPEGImages/a.jpg)" in text
    assert "Also: missing annotation files (1)" in text


ENTITIES = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
OBJECT = voc_object("dog", (1, 1, 9, 9))


@pytest.mark.parametrize(
    "text",
    [
        ENTITIES + "]><annotation><object><name>&i;</name></object></annotation>",
        '<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation></annotation>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "/etc/passwd">]><annotation><folder>&x;</folder></annotation>',
        "<a>" * 100_000,
        "<a>" * 60 + "</a>" * 60,
        '<?xml version="1.0" encoding="no-such"?><annotation></annotation>',
        "<annotation>\x00</annotation>",
        "",
        f"<annotation><size><width>6e1</width><height>40</height></size>{OBJECT}</annotation>",
        f"<annotation><size><width>6_0</width><height>40</height></size>{OBJECT}</annotation>",
        f"<annotation><size><width>{'9' * 5000}</width><height>40</height></size>{OBJECT}</annotation>",
        f"<annotation><size><width>999999</width><height>999999</height></size>{OBJECT}</annotation>",
        f"<annotation>{voc_object('dog', ('1_0', 1, 20, 9))}</annotation>",
        f"<annotation>{voc_object('dog', ('nan', 1, 20, 9))}</annotation>",
        f"<annotation>{voc_object('dog', (1, 1, '9' * 500, 9))}</annotation>",
        f"<annotation>{voc_object('dog', (1, 1, 9, 9), 'maybe')}</annotation>",
    ],
    ids=range(16),
)
def test_invalid_annotations_are_rejected(tmp_path, text):
    write_voc(tmp_path, {"a": [OBJECT]})
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    begun = time.perf_counter()
    error_text = message(tmp_path)
    assert time.perf_counter() - begun < 5.0
    assert str(tmp_path / "Annotations" / "a.xml") in error_text and len(error_text) < 1500


def test_paths_outside_the_folder_are_rejected(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    write_voc(root, {"a": [voc_object("vest", (1, 1, 9, 9))]})
    (tmp_path / "secret.xml").write_text(f"<annotation>{voc_object('secret', (1, 1, 9, 9))}</annotation>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n../../secret\n")
    text = message(root)
    assert "vest" in text and '["vest"]' in text
    (root / "classes.json").write_text('["vest"]')
    assert "../../secret" in message(root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "Annotations" / "a.xml").unlink()
    os.mkfifo(root / "Annotations" / "a.xml")
    assert "a.xml" in message(root)
