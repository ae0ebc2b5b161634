import json
import os
import time

import numpy as np
import pytest
from label_files import HEIGHT, WIDTH, picture, write_yolo
from PIL import Image

from vitsplit.errors import DataError
from vitsplit.tasks.detection.layouts import list_detection_splits, open_detection_set, recognize


def message(root):
    with pytest.raises(DataError) as caught:
        open_detection_set(root, "train")
    return str(caught.value)


def test_boxes_are_fractions_of_the_image(tmp_path):
    """Columns 15 to 44 and rows 10 to 19 of 60 x 40, and the whole image."""
    lines = [f"1 {30 / 60} {15 / 40} {30 / 60} {10 / 40}", "", "0 0.5 0.5 1 1"]
    write_yolo(tmp_path, {"a": lines, "b": None, "c": []})
    data = open_detection_set(tmp_path, "train")
    assert recognize(tmp_path) == (tmp_path, "yolo") and data.classes.names == ("cat", "dog")
    sample = data.load(0)
    assert np.allclose(sample.boxes_N4, [[15, 10, 45, 20], [0, 0, 60, 40]])
    assert sample.labels_N.tolist() == [1, 0] and sample.masks_NHW is None and not sample.crowd_N.any()
    assert [len(data.load(k).boxes_N4) for k in range(3)] == [2, 0, 0]
    truth = data.coco_truth()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2]
    assert [entry["area"] for entry in truth["annotations"]] == pytest.approx([300, 2400])
    assert data.category_ids == (0, 1) and {entry["id"] for entry in truth["images"]} == {1, 2, 3}


def test_polygons_fill_the_enclosed_pixels(tmp_path):
    """An L of whole pixels, as fractions: its pixels are known without a rasterizer."""
    points = [(12, 6), (24, 6), (24, 26), (36, 26), (36, 34), (12, 34)]
    line = "0 " + " ".join(f"{x / WIDTH:.8f} {y / HEIGHT:.8f}" for x, y in points)
    write_yolo(tmp_path, {"a": [line, "1 0.1 0.1 0.9 0.1 0.9 0.9"]})
    sample = open_detection_set(tmp_path, "train").load(0)
    expected_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected_HW[6:34, 12:24] = 1
    expected_HW[26:34, 24:36] = 1
    assert (sample.masks_NHW[0].numpy() == expected_HW).all()
    assert np.allclose(sample.boxes_N4[0], [12, 6, 36, 34], atol=1e-4)
    assert sample.labels_N.tolist() == [0, 1]


def test_boxes_among_polygons_disable_masks(tmp_path):
    write_yolo(tmp_path, {"a": ["0 0.1 0.1 0.5 0.1 0.5 0.5"], "b": ["0 0.5 0.5 0.2 0.2"]})
    data = open_detection_set(tmp_path, "train")
    assert not data.has_masks and data.load(0).masks_NHW is None


def test_split_folders_at_the_top_level(tmp_path):
    for split, folder in (("train", "train"), ("val", "valid")):
        picture(tmp_path / folder / "images" / "deep" / "a.jpg", len(split))
        path = tmp_path / folder / "labels" / "deep" / "a.txt"
        path.parent.mkdir(parents=True)
        path.write_text("0 0.5 0.5 0.5 0.5")
        (path.parent / "classes.txt").write_text("thing")  # as written by some tools
    (tmp_path / "classes.json").write_text(json.dumps(["thing"]))
    assert list_detection_splits(tmp_path) == ("train", "val")
    assert open_detection_set(tmp_path, "val").load(0).name == str(tmp_path / "valid/images/deep/a.jpg")


@pytest.mark.parametrize(
    "text",
    ["train: images/train\nnc: 2\nnames: [cat, dog]\n", "names:\n  0: cat\n  1: dog\n", "names:\n- cat\n- 'dog'\n"],
)
def test_names_from_yaml(tmp_path, text):
    write_yolo(tmp_path, {"a": ["1 0.5 0.5 0.5 0.5"]}, names=("other",))
    (tmp_path / "data.yaml").write_text(text)
    assert open_detection_set(tmp_path, "train").classes.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat\n", ["not valid YAML", "line 2"]),
        ("nc: 2\n", ['no "names" found']),
        ("names:\n  1: cat\n  2: dog\n", ["ids (from 0)"]),
        ("names: [cat, cat]\n", ["'cat'"]),
    ],
)
def test_invalid_names_are_rejected(tmp_path, text, words):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5"]})
    (tmp_path / "data.yaml").write_text(text)
    error_text = message(tmp_path)
    for word in (str(tmp_path / "data.yaml"), *words):
        assert word in error_text


def test_missing_names_give_an_example(tmp_path):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5"]})
    (tmp_path / "classes.txt").unlink()
    assert "classes.json: file not found, nor data.yaml" in message(tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.5 0.5", ["classes out of range: 1 (line 2: class 2 is not in 0 to 1)"]),
        ("-1 0.5 0.5 0.5 0.5", ["classes out of range: 1 (line 2: class -1"]),
        ("0.5 0.5 0.5 0.5 0.5", ["class 0.5"]),
        ("cat 0.5 0.5 0.5 0.5", ["invalid entries: 1 (line 2: 'cat 0.5", "are not numbers"]),
        ("0 0.5 0.5 0.5", ["line 2: 4 values"]),
        ("0 0.1 0.1 0.5 0.5 0.9", ["line 2: 6 values"]),
        ("0 0.5 0.5 nan 0.5", ["are not numbers"]),
        ("0 0.5 0.5 1.2 0.5", ["boxes outside their image: 1 (line 2: x -6 to 66, y 10 to 30 in 60x40)"]),
        ("0 0.5 0.5 -0.2 0.5", ["invalid boxes: 1 (line 2: width -12"]),
        ("0 31 22 10 8", ["boxes outside their image"]),
    ],
)
def test_invalid_lines_are_named(tmp_path, line, words):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5", line]})
    text = message(tmp_path)
    assert str(tmp_path / "labels" / "train" / "a.txt") in text
    for word in words:
        assert word in text


def test_invalid_lines_in_several_files_are_named(tmp_path):
    write_yolo(tmp_path, {name: ["7 0.5 0.5 0.5 0.5"] for name in "abcdefg"})
    text = message(tmp_path)
    assert text.startswith(f"{tmp_path / 'labels/train'}: classes out of range: 7 (a.txt, line 1: class 7")
    assert text.count("line 1") == 5


def test_labels_without_an_image_and_damaged_images_are_named(tmp_path):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5"], "b": []})
    (tmp_path / "labels" / "train" / "z.txt").write_text("")
    assert "missing images: 1 (z of z.txt)" in message(tmp_path)
    (tmp_path / "labels" / "train" / "z.txt").unlink()
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    assert "unreadable images: 1" in message(tmp_path) and "b.png" in message(tmp_path)


def test_a_training_split_without_objects_is_rejected(tmp_path):
    write_yolo(tmp_path, {"a": [], "b": None})
    assert "no object in the 2 images" in message(tmp_path)


def test_exif_orientation_is_applied(tmp_path):
    """Coordinates are fractions of the image after its EXIF rotation."""
    write_yolo(tmp_path, {"a": ["0 0.25 0.5 0.5 1"]})
    (tmp_path / "images" / "train" / "a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "train" / "a.jpg", exif=exif)
    sample = open_detection_set(tmp_path, "train").load(0)
    assert sample.image_CHW.shape == (3, WIDTH, HEIGHT)
    assert np.allclose(sample.boxes_N4, [[0, 0, HEIGHT / 2, WIDTH]])


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS + "names: *i\n",
        LAUGHS + "names: [cat, dog]\n",
        "x: &x [1]\nnames: [cat, dog]\n",
        "names: [cat, dog]\nnames: [dog, cat]\n",
        "names: {0: cat, 1: dog, 0: cow}\n",
        "names: " + "[" * 100_000,
        "names: [no, yes]\n",
        "names: [1.5, dog]\n",
        "names: [null, dog]\n",
        "names: [[cat], dog]\n",
        "names: {0: cat, true: dog}\n",
        "names: [0x" + "f" * 9000 + "]\n",
        "names: [" + "9" * 9000 + "]\n",
        "names: [2001-99-99]\n",
        "names: !!python/object/apply:os.system [echo]\n",
        "names: !!binary [1]\n",
        "names: [cat, dog\x00]\n",
        "? [a]\n: b\nnames: {[a]: b}\n",
        "names: [cat, dog] # " + "x" * 300_000,
        "- cat\n- dog\n",
        "",
        "names: [cat, dog]\n---\nnames: [a]\n",
    ],
    ids=lambda text: text[:20],
)
def test_invalid_yaml_is_rejected(tmp_path, text):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5"]})
    (tmp_path / "data.yaml").write_text(text)
    begun = time.perf_counter()
    error_text = message(tmp_path)
    assert time.perf_counter() - begun < 5.0
    assert str(tmp_path / "data.yaml") in error_text and len(error_text) < 1500


@pytest.mark.parametrize("word", ["0_1", "0x1", "\u0660", "infinity", "1e999", "1e", "--1", "0,5"])
def test_nonstandard_numbers_are_rejected(tmp_path, word):
    write_yolo(tmp_path, {"a": [f"0 0.5 0.5 0.5 {word}"]})
    text = message(tmp_path)
    assert str(tmp_path / "labels/train/a.txt") in text and "line 1" in text


def test_standard_number_formats_are_read(tmp_path):
    write_yolo(tmp_path, {"a": ["1.0 +.5 5e-1 0.50 50.0E-2"]})
    sample = open_detection_set(tmp_path, "train").load(0)
    assert sample.boxes_N4.tolist() == [[15, 10, 45, 30]] and sample.labels_N.tolist() == [1]


def test_unreadable_label_files_are_named(tmp_path):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5"]})
    path = tmp_path / "labels/train/a.txt"
    path.write_bytes(b"\xff\xfe0")
    assert str(path) in message(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert str(path) in message(tmp_path)
    path.unlink()
    path.write_text("0 " + "0.5 " * 100_000)
    assert len(message(tmp_path)) < 1000
