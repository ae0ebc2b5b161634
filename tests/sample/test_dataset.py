import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vitsplit.errors import DataError
from vitsplit.sample import CLASSES, OBJECT_CLASSES, generate_scene, write_segmentation_set
from vitsplit.sample.dataset import run_lengths, scene_seed

SIZE = (48, 64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    calls = []
    root = write_segmentation_set(
        tmp_path_factory.mktemp("set") / "rooms",
        7,
        4,
        SIZE,
        3,
        lambda done, total: calls.append((done, total)),
        workers=1,
    )
    assert calls == [(k + 1, 11) for k in range(11)]
    return root


def _files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _open(path):
    with Image.open(path) as image:
        image.load()
        return image


def test_layout_on_disk(written):
    names = {"train": [f"scene_{k:05d}" for k in range(7)], "val": [f"scene_{k:05d}" for k in range(4)]}
    expected = {"classes.json", "depth.json"}
    for split, stems in names.items():
        expected |= {f"annotations/{split}.json", f"questions_{split}.jsonl"}
        for stem in stems:
            expected |= {f"images/{split}/{stem}.jpg", f"masks/{split}/{stem}.png", f"depth/{split}/{stem}.png"}
    assert set(_files(written)) == expected
    assert json.loads((written / "classes.json").read_text()) == [
        "wall", "floor", "ceiling", "ball", "box", "cylinder", "cone",
    ]  # fmt: skip
    assert json.loads((written / "depth.json").read_text()) == {"scale": 0.001}


def test_files_contain_the_scenes(written):
    for split, index in (("train", 0), ("train", 6), ("val", 3)):
        scene = generate_scene(scene_seed(3, split, index), SIZE)
        stem = f"{split}/scene_{index:05d}"
        image, mask = _open(written / f"images/{stem}.jpg"), _open(written / f"masks/{stem}.png")
        assert image.mode == "RGB" and mask.mode == "L"
        assert np.abs(np.asarray(image, float) - scene.image_HWC).mean() < 4
        np.testing.assert_array_equal(np.asarray(mask), scene.mask_HW)
        depth = _open(written / f"depth/{stem}.png")
        assert depth.mode.startswith("I")
        np.testing.assert_allclose(np.asarray(depth) * 0.001, scene.depth_HW, atol=0.00051)
        lines = (written / f"questions_{split}.jsonl").read_text().splitlines()
        mine = [json.loads(line) for line in lines]
        found = tuple((q["question"], q["answer"]) for q in mine if q["image"] == f"scene_{index:05d}.jpg")
        assert found == scene.questions


def test_coco_annotations_are_read_by_the_official_tool(written):
    coco = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed").COCO
    data = coco(str(written / "annotations/val.json"))
    assert {c["id"]: c["name"] for c in data.loadCats(data.getCatIds())} == dict(enumerate(OBJECT_CLASSES, start=1))
    assert len(data.getImgIds()) == 4
    for index in range(4):
        scene = generate_scene(scene_seed(3, "val", index), SIZE)
        (image,) = (i for i in data.loadImgs(data.getImgIds()) if i["file_name"] == f"scene_{index:05d}.jpg")
        assert (image["height"], image["width"]) == SIZE
        annotations = data.loadAnns(data.getAnnIds(imgIds=[image["id"]]))
        assert len(annotations) == len(scene.boxes_N4)
        for row, annotation in enumerate(annotations):
            mask_HW = data.annToMask(annotation)
            np.testing.assert_array_equal(mask_HW, scene.instances_HW == row + 1)
            assert annotation["area"] == mask_HW.sum()
            x, y, width, height = annotation["bbox"]
            np.testing.assert_array_equal([x, y, x + width, y + height], scene.boxes_N4[row])
            name = data.loadCats([annotation["category_id"]])[0]["name"]
            assert name == CLASSES[scene.box_classes_N[row]]


@pytest.mark.parametrize("rows", ["0110", "1001", "0000", "1111"])
def test_run_lengths_decode_to_the_mask(rows):
    mask_HW = np.array([[c == "1" for c in rows], [c == "0" for c in rows]])
    rle = run_lengths(mask_HW)
    values = [k % 2 == 1 for k, count in enumerate(rle["counts"]) for _ in range(count)]
    height, width = rle["size"]
    decoded = [[values[column * height + row] for column in range(width)] for row in range(height)]
    np.testing.assert_array_equal(decoded, mask_HW)


def test_scenes_do_not_depend_on_workers_and_count(written, tmp_path):
    again = _files(write_segmentation_set(tmp_path / "again", 7, 4, SIZE, 3, workers=2))
    assert again == _files(written)
    fewer = _files(write_segmentation_set(tmp_path / "fewer", 1, 2, SIZE, 3, workers=1))
    same = [name for name in fewer if name.endswith((".png", ".jpg"))]
    assert len(same) == 9 and all(fewer[name] == again[name] for name in same)
    other = _files(write_segmentation_set(tmp_path / "other", 1, 0, SIZE, 4, workers=1))
    assert other["masks/train/scene_00000.png"] != again["masks/train/scene_00000.png"]
    assert again["masks/val/scene_00000.png"] != again["masks/train/scene_00000.png"]


def test_balanced_questions_of_scenes_with_few_objects(tmp_path):
    size, few = (24, 32), (1, 2)
    plain = _files(write_segmentation_set(tmp_path / "plain", 40, 20, size, 5, objects=few, workers=1))
    balanced = _files(write_segmentation_set(tmp_path / "balanced", 40, 20, size, 5, objects=few, balanced=True))
    assert {name for name in plain if plain[name] != balanced[name]} == {
        "questions_train.jsonl",
        "questions_val.jsonl",
    }
    for split, number in (("train", 40), ("val", 20)):
        annotations = json.loads(balanced[f"annotations/{split}.json"])["annotations"]
        per_image = Counter(annotation["image_id"] for annotation in annotations)
        assert max(per_image.values()) <= 2 and len(per_image) <= number
        lines = [set(files[f"questions_{split}.jsonl"].decode().splitlines()) for files in (plain, balanced)]
        assert lines[1] < lines[0]
        pairs = Counter((q["question"], q["answer"]) for q in map(json.loads, lines[1]))
        for question in {question for question, _ in pairs}:
            assert len({count for (text, _), count in pairs.items() if text == question}) == 1
        assert pairs["is there a box?", "yes"] == pairs["is there a box?", "no"] > 0


def test_too_few_scenes_for_balanced_questions(tmp_path):
    with pytest.raises(DataError, match="1 scenes for val"):
        write_segmentation_set(tmp_path / "set", 12, 1, (24, 32), balanced=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_rejected_and_unchanged(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not an empty folder"):
        write_segmentation_set(tmp_path, 1, 0, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_accepted(tmp_path):
    (tmp_path / "set").mkdir()
    assert (write_segmentation_set(tmp_path / "set", 1, 0, (24, 32)) / "classes.json").is_file()


def test_an_interrupted_set_leaves_no_files(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_segmentation_set(tmp_path / "set", 2, 0, (24, 32), on_scene=stop)
    assert not list(tmp_path.iterdir())
