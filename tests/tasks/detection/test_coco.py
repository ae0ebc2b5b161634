import contextlib
import copy
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from label_files import CATEGORIES, HEIGHT, WIDTH, coco_content, coco_image, coco_object, picture, write_coco
from pycocotools import mask as official_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vitsplit.errors import DataError
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.layouts import open_detection_set

BLOB_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
BLOB_HW[8:20, 10:33] = 1
BLOB_HW[12:30, 20:25] = 1
BLOB_HW[14:16, 12:30] = 0
L_SHAPE = [10.5, 5.2, 20.0, 5.2, 20.0, 25.7, 30.3, 25.7, 30.3, 34.9, 10.5, 34.9]
TRIANGLE = [40.0, 5.0, 55.5, 8.0, 47.0, 20.0]


def official(content):
    """The official tool's view of the same content."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
    return truth


def runs(mask_HW):
    """Uncompressed run lengths, column by column, the first of zeros: written out from the format's definition."""
    values = mask_HW.flatten(order="F")
    counts, current = [0], 0
    for value in values.tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return {"size": list(mask_HW.shape), "counts": counts}


def compressed(mask_HW):
    rle = official_mask.encode(np.asfortranarray(mask_HW))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def message(root, **config):
    with pytest.raises(DataError) as caught:
        open_detection_set(root, "train", DetectionConfig(**config))
    return str(caught.value)


def test_categories_are_classes_in_the_order_of_their_ids(tmp_path):
    objects = [coco_object(5, 1), coco_object(9, 1, category_id=11), coco_object(6, 8, category_id=7)]
    write_coco(tmp_path, coco_content([coco_image(1), coco_image(8)], objects))
    data = open_detection_set(tmp_path, "train")
    assert data.classes.names == ("cat", "cow", "dog") and data.category_ids == (3, 7, 11)
    assert data.load(0).labels_N.tolist() == [0, 2] and data.load(1).labels_N.tolist() == [1]
    assert [data.load(k).image_id for k in range(2)] == [1, 8]
    assert data.load(0).boxes_N4.tolist() == [[10, 5, 30, 35]] * 2
    assert data.load(0).masks_NHW is None and not data.has_masks
    truth = data.coco_truth()
    assert [(entry["id"], entry["image_id"], entry["category_id"]) for entry in truth["annotations"]] == [
        (5, 1, 3),
        (9, 1, 11),
        (6, 8, 7),
    ]
    assert sorted((c["id"], c["name"]) for c in truth["categories"]) == sorted((c["id"], c["name"]) for c in CATEGORIES)


def test_classes_file_gives_the_order(tmp_path):
    write_coco(tmp_path, coco_content([coco_image(1)], [coco_object(1, 1, category_id=11)]))
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["dog", "cat"], "colours": ["#ff0000", "#00ff00"]}))
    data = open_detection_set(tmp_path, "train")
    assert data.category_ids == (11, 3) and data.classes.colors == ((255, 0, 0), (0, 255, 0))
    assert data.load(0).labels_N.tolist() == [0]
    (tmp_path / "classes.json").write_text(json.dumps(["cat"]))
    assert "annotation 1 (1.png): category 11" in message(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "horse"]))
    text = message(tmp_path)
    assert str(tmp_path / "classes.json") in text and "horse" in text and "dog" in text


@pytest.mark.parametrize(
    "segmentation",
    [[L_SHAPE], [L_SHAPE, TRIANGLE], runs(BLOB_HW), compressed(BLOB_HW)],
    ids=["polygon", "two polygons", "uncompressed", "compressed"],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_masks_equal_the_official_tool(tmp_path, segmentation, crowd):
    entry = coco_object(1, 1, segmentation=segmentation, iscrowd=crowd)
    content = coco_content([coco_image(1)], [entry, coco_object(2, 1, segmentation=[TRIANGLE])])
    write_coco(tmp_path, content)
    data = open_detection_set(tmp_path, "train")
    truth = official(content)
    sample = data.load(0)
    assert data.has_masks and sample.masks_NHW.shape == (2, HEIGHT, WIDTH)
    for n, number in enumerate((1, 2)):
        expected_HW = truth.annToMask(truth.anns[number])
        assert expected_HW.any() and (sample.masks_NHW[n].numpy() == expected_HW).all()
    assert sample.crowd_N.tolist() == [bool(crowd), False]
    assert data.coco_truth()["annotations"][0]["segmentation"] == segmentation


def test_ground_truth_equals_the_official_tool(tmp_path):
    """Exact detections have AP 1; a detection in a crowd is not a false positive; the smallest id in the file is 0."""
    objects = [
        coco_object(0, 1, (10, 5, 20, 30), segmentation=[[10, 5, 30, 5, 30, 35, 10, 35]]),
        coco_object(1, 1, (32, 2, 8, 9), 11, segmentation=[[32, 2, 40, 2, 40, 11, 32, 11]]),
        coco_object(2, 1, (40, 0, 20, 40), iscrowd=1),
        coco_object(3, 1, (0, 0, 20, 0)),
    ]
    write_coco(tmp_path, coco_content([coco_image(1), coco_image(2)], objects))
    data = open_detection_set(tmp_path, "train")
    truth = official(data.coco_truth())
    assert [truth.anns[number]["iscrowd"] for number in (1, 2, 3)] == [0, 0, 1]
    found = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category, box, score in [(3, [10, 5, 20, 30], 0.5), (11, [32, 2, 8, 9], 0.5), (3, [45, 5, 10, 20], 0.9)]
    ]
    masks = [
        {"image_id": 1, "category_id": entry["category_id"], "score": 0.5, "segmentation": truth.annToRLE(entry)}
        for entry in truth.anns.values()
        if not entry["iscrowd"]
    ]
    for kind, results in (("bbox", found), ("segm", masks)):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOeval(truth, truth.loadRes(results), kind)
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        assert evaluator.stats[0] == pytest.approx(1.0)
    crowd_HW = data.load(0).masks_NHW[2].numpy()
    assert crowd_HW[:, 40:].all() and not crowd_HW[:, :40].any()


def test_areas_are_read_or_computed(tmp_path):
    objects = [
        coco_object(1, 1, area=123.5),
        {**coco_object(2, 1, segmentation=runs(BLOB_HW)), "area": None},
        {**coco_object(3, 1, (1, 1, 4, 5)), "area": None},
    ]
    write_coco(tmp_path, coco_content([coco_image(1)], objects))
    areas = [entry["area"] for entry in open_detection_set(tmp_path, "train").coco_truth()["annotations"]]
    assert areas == [123.5, BLOB_HW.sum(), 20.0]


def test_images_without_objects_are_included(tmp_path):
    write_coco(tmp_path, coco_content([coco_image(1), coco_image(2)], [coco_object(1, 2, segmentation=[L_SHAPE])]))
    data = open_detection_set(tmp_path, "train")
    sample = data.load(0)
    assert len(data) == 2 and sample.image_id == 1
    assert sample.boxes_N4.shape == (0, 4) and sample.masks_NHW.shape == (0, HEIGHT, WIDTH)
    assert sample.labels_N.shape == sample.crowd_N.shape == (0,)
    assert [entry["id"] for entry in data.coco_truth()["images"]] == [1, 2]


def test_degenerate_boxes_are_skipped_counted_and_named(tmp_path, caplog):
    boxes = [(10, 5, 20, 30), (10, 5, 0, 30), (10, 5, 3, 0), (WIDTH, 0, 0.5, 3)]
    write_coco(tmp_path, coco_content([coco_image(1)], [coco_object(k + 1, 1, box) for k, box in enumerate(boxes)]))
    data = open_detection_set(tmp_path, "train")
    assert len(data.load(0).boxes_N4) == 1 and len(data.coco_truth()["annotations"]) == 1
    assert (
        "degenerate boxes, skipped: 3 (annotation 2 (1.png), annotation 3 (1.png), annotation 4 (1.png))" in caplog.text
    )


def test_polygons_of_two_points_are_skipped(tmp_path, caplog):
    parts = [[[1, 1, 9, 9], L_SHAPE], [[1, 1, 9, 9]]]
    objects = [coco_object(k + 1, 1, segmentation=part) for k, part in enumerate(parts)]
    write_coco(tmp_path, coco_content([coco_image(1)], objects))
    data = open_detection_set(tmp_path, "train")
    assert data.coco_truth()["annotations"][0]["segmentation"] == [L_SHAPE] and len(data.load(0).boxes_N4) == 1
    assert "degenerate polygons, skipped: 2" in caplog.text and "degenerate boxes, skipped: 1" in caplog.text


def test_boxes_are_clipped_to_the_image(tmp_path, caplog):
    boxes = [(-0.5, 0, 20, 40.9), (50, 30, 13, 5), (-4, 2, 10, 10)]
    objects = [coco_object(k + 1, 1, box) for k, box in enumerate(boxes)]
    file = write_coco(tmp_path, coco_content([coco_image(1)], objects))
    text = message(tmp_path)
    assert text.startswith(
        f"{file}: boxes outside their image: 2 (annotation 2 (1.png): x 50 to 63, y 30 to 35 in 60x40"
    )
    assert "annotation 3" in text and "annotation 1 " not in text and "--bad-boxes clip" in text
    data = open_detection_set(tmp_path, "train", DetectionConfig(bad_boxes="clip"))
    assert np.allclose(data.load(0).boxes_N4, [[0, 0, 19.5, 40], [50, 30, 60, 35], [0, 2, 6, 12]])
    assert ": 2 (annotation 2" in caplog.text


def good():
    return coco_content([coco_image(1), coco_image(2)], [coco_object(1, 1), coco_object(2, 2)])


def changed(what, place, **changes):
    content = good()
    content[what][place].update(changes)
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (changed("images", 1, id=1), ["duplicate image ids: 1 (1, 2 times)", "unique ids"]),
        (changed("annotations", 1, id=1), ["duplicate annotation ids: 1 (1, 2 times)"]),
        (changed("annotations", 1, image_id=99), ["missing images: 1 (annotation 2 of image 99)"]),
        (changed("annotations", 1, category_id=4), ["classes out of range: 1 (annotation 2 (2.png): category 4)"]),
        (changed("annotations", 0, bbox=[1, 2, 3]), ["invalid boxes: 1 (annotation 1 (1.png): [1, 2, 3])"]),
        (changed("annotations", 0, bbox=[1, 2, -3, 4]), ["invalid boxes", "width -3"]),
        (changed("annotations", 0, bbox=[1, 2, float("nan"), 4]), ["NaN"]),
        (changed("annotations", 0, bbox=None), ['annotation 1: "bbox" must be a list']),
        (changed("images", 0, width="60"), ['image 1: "width" must be a']),
        (changed("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), ["invalid masks", "x1 y1 x2 y2"]),
        (changed("annotations", 0, segmentation={"size": [60, 40], "counts": [2400]}), ["size [60, 40]", "60x40"]),
        (changed("annotations", 0, segmentation={"size": [40, 60], "counts": [9, 9]}), ["18 pixels of 2400"]),
        (changed("annotations", 0, segmentation={"size": [40, 60], "counts": ["9", 2391]}), ["non-negative integers"]),
        (changed("annotations", 0, segmentation={"size": [40, 60], "counts": [-5, 2405]}), ["not in 0 to 2400"]),
        (changed("annotations", 0, segmentation=[[1, 1], [9, 1], [9, 9]]), ["invalid masks", "a list of points"]),
        ({**good(), "categories": []}, ["categories", "list of classes is empty"]),
        ({**good(), "categories": [CATEGORIES[0]] * 2}, ["category 2 has a duplicate id 3"]),
        ({**good(), "annotations": []}, ["no object in the 2 images"]),
        (coco_content([], []), ["no images listed"]),
        ({"images": []}, ["annotations, categories"]),
    ],
)
def test_invalid_content_gives_one_message(tmp_path, content, words):
    file = write_coco(tmp_path, content)
    text = message(tmp_path)
    assert str(file) in text and "\n" not in text
    for word in words:
        assert word in text


def test_several_kinds_are_counted(tmp_path):
    content = changed("annotations", 1, category_id=4)
    content["annotations"] += [coco_object(3, 1, category_id=5), coco_object(4, 50), coco_object(5, 51)]
    write_coco(tmp_path, content)
    text = message(tmp_path)
    assert "classes out of range: 2 (" in text and "Also: annotations of missing images (2)." in text


def test_missing_images_are_counted_and_five_named(tmp_path):
    images = [coco_image(k) for k in range(1, 10)]
    file = write_coco(tmp_path, coco_content(images, [coco_object(1, 1)]), pictures=False)
    for k in (1, 2):
        picture(tmp_path / "images" / "train" / f"{k}.png")
    text = message(tmp_path)
    assert text.startswith(f"{file}: missing images: 7 (train/3.png, train/4.png")
    assert text.count(".png") == 5 and "..." in text


def test_invalid_json_gives_the_line(tmp_path):
    file = write_coco(tmp_path, good())
    file.write_text('{"images": [],\n "annotations": [}')
    assert f"{file}: not valid JSON" in message(tmp_path) and "line 2" in message(tmp_path)


def test_a_size_mismatch_is_an_error(tmp_path):
    write_coco(tmp_path, good())
    picture(tmp_path / "images" / "train" / "1.png", width=HEIGHT, height=WIDTH)
    with pytest.raises(DataError, match=r"1\.png: .*40x60 .*60x40.*EXIF"):
        open_detection_set(tmp_path, "train").load(0)


def test_an_undecodable_mask_is_an_error(tmp_path):
    content = changed("annotations", 0, segmentation={"size": [HEIGHT, WIDTH], "counts": "zz"})
    content["annotations"][1]["segmentation"] = [L_SHAPE]
    file = write_coco(tmp_path, content)
    text = message(tmp_path)
    assert str(file) in text and "invalid masks: 1 (annotation 1 (1.png)" in text


def test_masks_can_be_disabled(tmp_path):
    content = changed("annotations", 0, segmentation=[L_SHAPE])
    write_coco(tmp_path, content)
    assert not open_detection_set(tmp_path, "train").has_masks
    assert "1 objects have no mask (annotation 2 (2.png))" in message(tmp_path, masks="on")
    content["annotations"][1]["segmentation"] = [L_SHAPE]
    write_coco(tmp_path, content)
    assert open_detection_set(tmp_path, "train", DetectionConfig(masks="on")).load(0).masks_NHW is not None
    off = open_detection_set(tmp_path, "train", DetectionConfig(masks="off"))
    assert not off.has_masks and off.load(0).masks_NHW is None


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "split"), [("bccd", "val"), ("tiny_coco", "train"), ("tiny_coco", "val")])
def test_public_sets_equal_the_official_tool(name, split):
    folder = os.environ.get("VITSPLIT_DATA")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"{name}: set VITSPLIT_DATA to the folder that holds it")
    root = Path(folder) / name
    truth = official(json.loads((root / "annotations" / f"{split}.json").read_text()))
    data = open_detection_set(root, split)
    assert [item.image_id for item in data.items] == list(truth.imgs) and data.has_masks == (name == "tiny_coco")
    ours = {entry["id"]: entry for entry in data.coco_truth()["annotations"]}
    assert ours.keys() == truth.anns.keys()
    for number, entry in truth.anns.items():
        keys = ("bbox", "area", "category_id", "iscrowd", "image_id")
        assert [ours[number][key] for key in keys] == [entry[key] for key in keys]
    for index in range(0, len(data), 5):
        sample = data.load(index)
        annotations = truth.imgToAnns[sample.image_id]
        assert len(annotations) == len(sample.labels_N)
        for n, entry in enumerate(annotations):
            assert data.category_ids[sample.labels_N[n]] == entry["category_id"]
            if sample.masks_NHW is not None:
                assert (sample.masks_NHW[n].numpy() == truth.annToMask(entry)).all()


REFUSED = {
    "category id": lambda content: content["categories"][0].update(id=1.7),
    "category id true": lambda content: content["categories"][0].update(id=True),
    "category id text": lambda content: content["categories"][0].update(id="3"),
    "category name": lambda content: content["categories"][0].update(name=5),
    "category": lambda content: content["categories"].append("cat"),
    "300 categories": lambda content: content.update(categories=[{"id": k, "name": str(k)} for k in range(300)]),
    "crowd text": lambda content: content["annotations"][0].update(iscrowd="0"),
    "crowd 2": lambda content: content["annotations"][0].update(iscrowd=2),
    "crowd true": lambda content: content["annotations"][0].update(iscrowd=True),
    "area text": lambda content: content["annotations"][0].update(area="12"),
    "area negative": lambda content: content["annotations"][0].update(area=-1),
    "area infinite": lambda content: content["annotations"][0].update(area=1e308 * 10),
    "area huge": lambda content: content["annotations"][0].update(area=10**400),
    "box true": lambda content: content["annotations"][0].update(bbox=[1, 1, True, 9]),
    "box huge": lambda content: content["annotations"][0].update(bbox=[1, 1, 10**400, 9]),
    "box far": lambda content: content["annotations"][0].update(bbox=[1, 1, 1e308, 1e308]),
    "box text": lambda content: content["annotations"][0].update(bbox=["1", "1", "9", "9"]),
    "id huge": lambda content: content["annotations"][0].update(id=2**70),
    "image id true": lambda content: content["images"][0].update(id=True),
    "width 0": lambda content: content["images"][0].update(width=0),
    "width negative": lambda content: content["images"][0].update(width=-60),
    "a trillion pixels": lambda content: content["images"][0].update(width=10**6, height=10**6),
    "outside": lambda content: content["images"][0].update(file_name="../secret.png"),
    "absolute": lambda content: content["images"][0].update(file_name="/etc/passwd"),
    "null character": lambda content: content["images"][0].update(file_name="a\x00.png"),
    "long name": lambda content: content["images"][0].update(file_name="a" * 1000 + ".png"),
    "polygon of text": lambda content: content["annotations"][0].update(segmentation=[["1", "1", "9", "1", "9", "9"]]),
    "polygon of truths": lambda content: content["annotations"][0].update(segmentation=[[True] * 6]),
    "polygon huge": lambda content: content["annotations"][0].update(segmentation=[[10**400] * 6]),
    "polygon far": lambda content: content["annotations"][0].update(segmentation=[[1e9, 1e9, 1e9, 2e9, 3e9, 3e9]]),
    "polygon long": lambda content: content["annotations"][0].update(segmentation=[[0, 0, 1e6, 1e6] * 20]),
    "a false mask": lambda content: content["annotations"][0].update(segmentation=False),
    "a text mask": lambda content: content["annotations"][0].update(segmentation="aa"),
    "runs of floats": lambda content: content["annotations"][0].update(
        segmentation={"size": [40, 60], "counts": [0.0, 2400.0]}
    ),
    "runs of another size": lambda content: content["annotations"][0].update(
        segmentation={"size": [40.0, 60], "counts": [2400]}
    ),
    "runs huge": lambda content: content["annotations"][0].update(segmentation={"size": [40, 60], "counts": [10**400]}),
    "an image that is none": lambda content: content["images"].append([1]),
    "an annotation that is none": lambda content: content["annotations"].append(None),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_values_of_the_wrong_type_are_rejected(tmp_path, change):
    content = copy.deepcopy(good())
    write_coco(tmp_path, content)
    assert len(open_detection_set(tmp_path, "train")) == 2
    change(content)
    file = write_coco(tmp_path, content, pictures=False)
    text = message(tmp_path)
    assert str(file) in text and len(text) < 2000


def test_images_outside_the_folder_are_rejected(tmp_path):
    """The file outside exists and is valid; a link in the folder can point to it."""
    content = good()
    content["images"][0]["file_name"] = "../../outside.png"
    write_coco(tmp_path, content, pictures=False)
    picture(tmp_path / "outside.png")
    picture(tmp_path / "images" / "train" / "2.png")
    assert "../../outside.png" in message(tmp_path)
    content["images"][0]["file_name"] = "link.png"
    write_coco(tmp_path, content, pictures=False)
    (tmp_path / "images" / "train" / "link.png").symlink_to(tmp_path / "outside.png")
    assert open_detection_set(tmp_path, "train").load(0).image_CHW.shape == (3, HEIGHT, WIDTH)
