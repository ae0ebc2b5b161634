import json

import pytest
from label_files import (
    CATEGORIES,
    coco_content,
    coco_image,
    coco_object,
    picture,
    voc_object,
    write_coco,
    write_voc,
    write_yolo,
)

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.layouts import (
    list_detection_splits,
    open_detection_set,
    recognize,
    require_same_classes,
)

CONTENT = coco_content([coco_image(1)], [coco_object(1, 1)])


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/{}.json", "images/{}"),
        ("annotations/{}.json", "images"),
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}2014.json", "images/{}2014"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_coco_file_locations(tmp_path, file, folder):
    for split in ("train", "val"):
        path = tmp_path / file.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(CONTENT))
        picture(tmp_path / folder.format(split) / "1.png")
    assert recognize(tmp_path) == (tmp_path, "coco") and list_detection_splits(tmp_path) == ("train", "val")
    data = open_detection_set(tmp_path, "val")
    assert data.load(0).name == str(tmp_path / folder.format("val") / "1.png")
    assert data.source == tmp_path / file.format("val")


def test_an_ambiguous_folder_is_read_in_the_given_format(tmp_path):
    write_coco(tmp_path, CONTENT)
    write_yolo(tmp_path, {"1": ["0 0.5 0.5 0.5 0.5"] * 3})
    assert recognize(tmp_path)[1] == "coco" and len(open_detection_set(tmp_path, "train").load(0).labels_N) == 1
    config = DetectionConfig(format="yolo")
    (tmp_path / "classes.txt").write_text("thing")
    assert len(open_detection_set(tmp_path, "train", config).load(0).labels_N) == 3
    with pytest.raises(DataError, match="format voc"):
        recognize(tmp_path, "voc")


def test_unknown_folders_are_an_error(tmp_path):
    with pytest.raises(DataError, match="not found"):
        recognize(tmp_path / "absent")
    with pytest.raises(DataError, match=r"coco: annotations/train\.json .* voc: .* yolo:"):
        recognize(tmp_path)
    with pytest.raises(ConfigError, match=r"'tfrecord'\. Formats: auto, coco"):
        recognize(tmp_path, "tfrecord")
    for year in ("VOC2007", "VOC2012"):
        write_voc(tmp_path / year, {"a": [voc_object("cat", (2, 2, 20, 20))]})
    with pytest.raises(DataError, match=r"VOC2007, .*VOC2012"):
        recognize(tmp_path)


def test_a_missing_split_is_an_error(tmp_path):
    write_coco(tmp_path, CONTENT)
    with pytest.raises(DataError, match=r"'val' .*only train"):
        open_detection_set(tmp_path, "val")


def test_only_a_test_split_can_be_without_objects(tmp_path):
    for split in ("val", "test"):
        write_coco(tmp_path, coco_content([coco_image(1)], []), split)
    assert len(open_detection_set(tmp_path, "test")) == 1
    with pytest.raises(DataError, match=r"val\.json: no object in the 1 images"):
        open_detection_set(tmp_path, "val")
    write_coco(tmp_path, coco_content([], []), "test")
    with pytest.raises(DataError, match=r"test\.json: no images listed"):
        open_detection_set(tmp_path, "test")


def test_a_training_split_with_only_crowds_is_rejected(tmp_path):
    write_coco(tmp_path, coco_content([coco_image(1)], [coco_object(1, 1, iscrowd=1)]))
    with pytest.raises(DataError, match="no object in the 1 images"):
        open_detection_set(tmp_path, "train")


def test_splits_with_different_categories_are_rejected(tmp_path):
    write_coco(tmp_path, CONTENT)
    write_coco(tmp_path, CONTENT, "val")
    require_same_classes({split: open_detection_set(tmp_path, split) for split in ("train", "val")})
    swapped = [{**CATEGORIES[0], "name": "dog"}, {**CATEGORIES[1], "name": "cat"}, CATEGORIES[2]]
    write_coco(tmp_path, coco_content([coco_image(1)], [coco_object(1, 1)], swapped), "val")
    with pytest.raises(DataError, match=r"val\.json: .*11: cat, 11: dog, 3: cat, 3: dog"):
        require_same_classes({split: open_detection_set(tmp_path, split) for split in ("train", "val")})
