import json
import os
import shutil
from pathlib import Path

import pytest
from label_files import (
    HEIGHT,
    WIDTH,
    coco_content,
    coco_image,
    coco_object,
    picture,
    voc_object,
    write_coco,
    write_voc,
    write_yolo,
)

from vitsplit.cli.main import main
from vitsplit.tasks import check_data

SQUARE = [[10, 5, 30, 5, 30, 35, 10, 35]]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 11, "name": "dog"}]


def good():
    objects = [coco_object(1, 1), coco_object(2, 1, (2, 2, 30, 30), 11), coco_object(3, 2, (3, 3, 9, 9))]
    return coco_content([coco_image(1), coco_image(2)], objects, CATEGORIES)


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        write_coco(tmp_path, good(), split)
    return tmp_path


def errors(root):
    assert main(["data", "check", str(root), "--task", "detection", "--workers", "1"]) == 1
    return check_data(root, "detection", workers=1).errors


def test_a_valid_set_has_no_findings(root, capsys):
    content = good()
    content["images"].append(coco_image(3, width=300, height=200))
    content["images"].append(coco_image(4))
    content["annotations"] += [
        coco_object(4, 3, (10, 10, 100, 150)),
        coco_object(5, 3, (10, 10, 100, 96.1), 11, area=96**2, segmentation=SQUARE),
        coco_object(6, 3, (10, 10, 100, 100), iscrowd=1),
    ]
    write_coco(root, content)
    picture(root / "images" / "train" / "3.png", 1, 300, 200)
    report = check_data(root, "detection", workers=1)
    assert report.findings == [] and (report.format, report.counted) == ("coco", "objects")
    train = report.splits["train"]
    assert train.images == 4 and train.sizes == [(WIDTH, HEIGHT, 3), (300, 200, 1)]
    assert [(each.name, each.count, each.images) for each in train.classes] == [("cat", 3, 3), ("dog", 2, 2)]
    assert train.classes[0].share == pytest.approx(3 / 5) and train.ignored_share is None
    figures = (5, 1, 1, 1, 1.25, 2, 0, 3, 1, 1)
    assert tuple(train.facts.values()) == pytest.approx(figures), train.facts
    assert list(train.facts)[:4] == ["objects", "objects with a mask", "crowds", "images without objects"]
    assert main(["data", "check", str(root), "--task", "detection"]) == 0
    output = capsys.readouterr().out
    assert "images without objects" in output and "cat" in output and "ready: 0 errors, 0 warnings" in output


def test_all_errors_are_reported_and_the_rest_is_checked(root):
    content = good()
    content["annotations"] += [
        coco_object(1, 2),
        coco_object(4, 2, (50, 5, 30, 30)),
        coco_object(5, 9),
        coco_object(6, 2, category_id=4),
        coco_object(7, 2, segmentation={"size": [HEIGHT, WIDTH], "counts": "zz"}),
    ]
    content["images"] += [coco_image(7), coco_image(8)]
    file = write_coco(root, content)
    (root / "images" / "train" / "7.png").unlink()
    (root / "images" / "train" / "8.png").write_bytes(b"no image")
    picture(root / "images" / "train" / "2.png", 9, 20, 20)
    found = errors(root)
    assert sorted(each.kind for each in found) == [
        "annotations of missing images",
        "boxes outside their image",
        "classes out of range",
        "duplicate annotation ids",
        "invalid masks",
        "missing images",
        "size mismatch",
        "unreadable image",
    ]
    messages = {each.kind: each.message for each in found}
    assert (
        str(file) in messages["boxes outside their image"]
        and "annotation 4 (2.png)" in messages["boxes outside their image"]
    )
    assert "20x20" in messages["size mismatch"] and "60x40" in messages["size mismatch"]
    assert list(check_data(root, "detection", workers=1).splits) == ["train", "val"]


def test_skipped_objects_and_unused_classes_are_warnings(root):
    content = good()
    content["annotations"] = [
        coco_object(1, 1),
        coco_object(2, 1, (4, 4, 0, 9)),
        coco_object(3, 2, segmentation=[[70, 1, 80, 1, 80, 9]]),
    ]
    write_coco(root, content)
    report = check_data(root, "detection", workers=1)
    assert report.errors == [] and report.splits["train"].facts["degenerate boxes"] == 1
    message = {each.kind: each.message for each in report.warnings}
    assert set(message) == {"degenerate boxes", "classes never seen", "empty masks"}
    assert "annotation 2 (1.png)" in message["degenerate boxes"] and "annotation 3 (2.png)" in message["empty masks"]
    assert (
        "no object of 1 of 2 classes: dog" in message["classes never seen"] and "train" in message["classes never seen"]
    )


def test_an_image_in_two_splits_is_reported(root):
    shutil.copy(root / "images" / "train" / "1.png", root / "images" / "val" / "2.png")
    (found,) = errors(root)
    assert found.kind == "image in two splits" and "train/1.png" in found.message and "val/2.png" in found.message


def test_different_categories_in_another_split_are_reported(root):
    content = good()
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 11, "name": "cow"}]
    write_coco(root, content, "val")
    (found,) = errors(root)
    assert found.kind == "other classes in another split" and "11: cow, 11: dog" in found.message


def test_splits_without_objects_and_invalid_json_are_reported(root):
    write_coco(root, coco_content([coco_image(1)], [], CATEGORIES))
    (root / "annotations" / "val.json").write_text("{")
    found = errors(root)
    assert [each.kind for each in found] == ["split train cannot be opened", "split val cannot be opened"]
    assert "no object in the 1 images" in found[0].message and "line 1" in found[1].message


def test_yolo(tmp_path):
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5", "5 0.5 0.5 0.5 0.5"], "b": None, "c": ["1 2 2 1 1"]})
    write_yolo(tmp_path, {"a": ["0 0.5 0.5 0.5 0.5", "1 0.5 0.5 0 0.5"]}, "val")
    report = check_data(tmp_path, "detection", workers=1)
    assert report.format == "yolo" and report.splits["train"].facts["images without objects"] == 2
    assert sorted((each.kind, each.file) for each in report.errors) == [
        ("boxes outside their image", str(tmp_path / "labels/train/c.txt")),
        ("classes out of range", str(tmp_path / "labels/train/a.txt")),
    ]
    assert "degenerate boxes" in {each.kind for each in report.warnings}


def test_voc(tmp_path):
    write_voc(tmp_path, {"a": [voc_object("cat", (2, 2, 20, 20)), voc_object("cat", (2, 2, 90, 20))], "b": []})
    write_voc(tmp_path, {"c": [voc_object("cat", (2, 2, 20, 20), 1), voc_object("dog", (5, 5, 9, 9))]}, "val")
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    report = check_data(tmp_path, "detection", workers=1)
    assert report.format == "voc" and report.splits["val"].facts["crowds"] == 1
    assert sorted(each.kind for each in report.errors) == ["boxes outside their image", "invalid entries"]


def test_json_output(root, capsys):
    assert main(["data", "check", str(root), "--task", "detection", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["val"]["classes"][0] == {"name": "cat", "count": 2, "share": 2 / 3, "images": 2}
    assert report["splits"]["val"]["facts"]["objects"] == 3


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "images", "objects", "crowds"),
    [("bccd", (205, 87), (2805, 1138), (0, 0)), ("tiny_coco", (50, 50), (465, 377), (5, 5))],
)
def test_public_sets_have_no_errors(name, images, objects, crowds):
    folder = os.environ.get("VITSPLIT_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"{name}: set VITSPLIT_DATA to the folder that holds it")
    report = check_data(Path(folder) / name, "detection", workers=1)
    assert report.errors == []
    splits = [report.splits[split] for split in ("train", "val")]
    assert tuple(split.images for split in splits) == images
    assert tuple(split.facts["objects"] for split in splits) == objects
    assert tuple(split.facts["crowds"] for split in splits) == crowds
    if name == "tiny_coco":
        assert sum(entry.count > 0 for entry in splits[0].classes) == 49
