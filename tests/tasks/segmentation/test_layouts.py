import json

import numpy as np
import pytest
from PIL import Image

from vitsplit.data import images
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.segmentation.data import LabelRangeError
from vitsplit.tasks.segmentation.layouts import list_segmentation_splits, open_segmentation_set, recognize

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(path, height=3, width=4):
    save(path, np.zeros((height, width, 3), np.uint8))


def message(*arguments):
    with pytest.raises(DataError) as caught:
        open_segmentation_set(*arguments)
    return str(caught.value)


def test_folder_layout(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.jpg")
        save(tmp_path / "masks" / split / "a.png", IDS // 6)
    (tmp_path / "classes.json").write_text(json.dumps(["sky", "road"]))
    data = open_segmentation_set(tmp_path, "val")
    assert recognize(tmp_path) == (tmp_path, "folder")
    assert data.classes.names == ("sky", "road")
    assert data.items == ((tmp_path / "images/val/a.jpg", tmp_path / "masks/val/a.png"),)
    assert data.load(0).mask_HW.tolist() == (IDS // 6).tolist()
    assert list_segmentation_splits(tmp_path) == ("train", "val")


def test_missing_classes_give_an_example(tmp_path):
    picture(tmp_path / "images" / "train" / "a.jpg")
    save(tmp_path / "masks" / "train" / "a.png", np.array([[0, 1], [2, 255]], np.uint8))
    text = message(tmp_path, "train")
    assert str(tmp_path / "classes.json") in text
    (tmp_path / "classes.json").write_text(text.split("\n")[-1])
    assert open_segmentation_set(tmp_path, "train").classes.names == ("class_0", "class_1", "class_2")


def test_missing_classes_of_color_masks(tmp_path):
    for k, colors in enumerate([[(0, 0, 0), (128, 64, 128)], [(70, 130, 180), (0, 0, 0)]]):
        picture(tmp_path / "images" / "train" / f"{k}.jpg", 1, 2)
        save(tmp_path / "masks" / "train" / f"{k}.png", np.array([colors], np.uint8))
    (tmp_path / "classes.json").write_text(message(tmp_path, "train").split("\n")[-1])
    data = open_segmentation_set(tmp_path, "train")
    assert [data.load(k).mask_HW.tolist() for k in range(2)] == [[[0, 2]], [[1, 0]]]


@pytest.mark.parametrize("nested", ["", "ADEChallengeData2016"])
def test_ade20k(tmp_path, nested):
    root = tmp_path / nested
    mask = np.array([[0, 1, 2, 150]], np.uint8)
    for folder in ("training", "validation"):
        picture(root / "images" / folder / f"ADE_{folder}.jpg", 1, 4)
        save(root / "annotations" / folder / f"ADE_{folder}.png", mask)
    data = open_segmentation_set(tmp_path, "val")
    assert recognize(tmp_path)[1] == "ade20k"
    assert len(data.classes) == 150
    assert [data.classes.names[k] for k in (0, 1, 12, 149)] == ["wall", "building", "person", "flag"]
    assert data.load(0).mask_HW.tolist() == [[255, 0, 1, 149]]
    assert data.load(0).name.endswith("ADE_validation.jpg")
    assert "test split" in message(tmp_path, "test")
    save(root / "annotations" / "training" / "ADE_training.png", mask + 1)  # 151 is not a class
    with pytest.raises(DataError, match="value 151 \\(1 pixels\\)"):
        open_segmentation_set(tmp_path, "train").load(0)


def test_cityscapes(tmp_path):
    # trainId of every label id, from the data set's own table
    train_ids = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13,
                 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
    ids = np.arange(34, dtype=np.uint8)[None]
    for city, name in (("ulm", "ulm_000000_000019"), ("bonn", "bonn_000001_000019")):
        picture(tmp_path / "leftImg8bit" / "val" / city / f"{name}_leftImg8bit.png", 1, 34)
        save(tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_labelIds.png", ids)
        save(tmp_path / "gtFine" / "val" / city / f"{name}_gtFine_color.png", np.zeros((1, 34, 3), np.uint8))
    data = open_segmentation_set(tmp_path, "val")
    assert recognize(tmp_path)[1] == "cityscapes" and len(data) == 2 and len(data.classes) == 19
    assert data.load(0).mask_HW.tolist() == [[train_ids.get(label, 255) for label in range(34)]]
    assert dict(zip(data.classes.names, data.classes.colors, strict=True))["car"] == (0, 0, 142)
    assert "bonn" in data.load(0).name


def pascal(tmp_path, split):
    picture(tmp_path / "VOC2010" / "JPEGImages" / "2008_000002.jpg", 1, 4)
    picture(tmp_path / "VOC2010" / "JPEGImages" / "2008_000003.jpg", 1, 4)
    path = tmp_path / "VOC2010" / "ImageSets" / split / "val.txt"
    path.parent.mkdir(parents=True)
    path.write_text("2008_000003\n\n")
    return path


def test_pascal_context_as_png(tmp_path):
    pascal(tmp_path, "SegmentationContext")
    mask_path = tmp_path / "VOC2010" / "SegmentationClassContext" / "2008_000003.png"
    save(mask_path, np.array([[0, 1, 59, 255]], np.uint8))
    data = open_segmentation_set(tmp_path, "val")
    assert recognize(tmp_path)[1] == "pascal-context"
    assert (len(data), len(data.classes)) == (1, 59)
    assert (data.classes.names[0], data.classes.names[58]) == ("aeroplane", "wood")
    assert data.load(0).mask_HW.tolist() == [[255, 0, 58, 255]]
    mask_path.unlink()
    text = message(tmp_path, "val")
    assert "1 files" in text and "2008_000003.png" in text
    assert "train.txt: file not found" in message(tmp_path, "train")


def published_pascal(tmp_path):
    """The published labels: 459 names in an order of their own, and a MATLAB file per image."""
    from vitsplit.data.public_classes import PASCAL_CONTEXT_59

    pascal(tmp_path, "Main")
    others = iter(f"other thing {k}" for k in range(400))
    names = [next(others) if k % 5 else PASCAL_CONTEXT_59[-1 - k // 5] for k in range(295)]
    names += list(others)
    (tmp_path / "labels.txt").write_text("\n".join(f"{k + 1}: {name}" for k, name in enumerate(names)))
    (tmp_path / "59_labels.txt").write_text("")
    (tmp_path / "trainval").mkdir()
    return names


def test_pascal_context_as_mat(tmp_path):
    io = pytest.importorskip("scipy.io")
    names = published_pascal(tmp_path)
    values = [0, names.index("wood") + 1, names.index("aeroplane") + 1, names.index("other thing 399") + 1]
    assert values[-1] > 255
    io.savemat(tmp_path / "trainval" / "2008_000003.mat", {"LabelMap": np.array([values], np.uint16)})
    data = open_segmentation_set(tmp_path, "val")
    assert data.load(0).mask_HW.tolist() == [[255, 58, 0, 255]]
    (tmp_path / "trainval" / "2008_000003.mat").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2008_000003\.mat"):
        open_segmentation_set(tmp_path, "val").load(0)


def test_pascal_context_as_mat_without_scipy(tmp_path, monkeypatch):
    published_pascal(tmp_path)
    (tmp_path / "trainval" / "2008_000003.mat").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(DataError, match=r"vitsplit\[pascal-context\]") as caught:
        open_segmentation_set(tmp_path, "val").load(0)
    assert "2008_000003.mat" in str(caught.value)


def test_missing_or_invalid_labels_file(tmp_path):
    published_pascal(tmp_path)
    (tmp_path / "labels.txt").write_text("1: wall\n2: pottedplant")
    assert "57 of the 59 classes" in message(tmp_path, "val")
    (tmp_path / "labels.txt").unlink()
    assert f"{tmp_path / 'labels.txt'}: file not found" in message(tmp_path, "val")


def test_unknown_layout_describes_the_supported_ones(tmp_path):
    text = message(tmp_path, "train")
    assert str(tmp_path) in text and "images/train" in text and "classes.json" in text
    assert "leftImg8bit" in message(tmp_path, "train", "cityscapes")
    assert "not found" in message(tmp_path / "absent", "train")


def test_a_data_set_in_a_subfolder_is_suggested(tmp_path):
    picture(tmp_path / "around" / "mine" / "images" / "a.jpg")
    assert f"{tmp_path / 'around' / 'mine'} may be" in message(tmp_path / "around", "train")


def test_unknown_names(tmp_path):
    with pytest.raises(ConfigError, match=r"'coco'.*auto, ade20k, cityscapes, pascal-context, folder"):
        open_segmentation_set(tmp_path, "train", "coco")
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(ConfigError, match="'dev'"):
        open_segmentation_set(tmp_path, "dev")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\x00b", "n" * 2000])
def test_pascal_context_lists_cannot_leave_their_folder(tmp_path, name):
    path = pascal(tmp_path, "SegmentationContext")
    save(tmp_path / "VOC2010" / "SegmentationClassContext" / "2008_000003.png", np.array([[0, 1, 59, 255]], np.uint8))
    assert len(open_segmentation_set(tmp_path, "val")) == 1
    path.write_text(f"2008_000003\n{name}\n")
    text = message(tmp_path, "val")
    assert f"{path}, line 2" in text and len(text) < 1000


@pytest.mark.parametrize(
    "line", ["x: accordion", "-1: accordion", "1_0: accordion", f"{'9' * 5000}: accordion", "accordion:x"]
)
def test_non_numeric_labels_of_pascal_context_are_rejected(tmp_path, line):
    published_pascal(tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text(f"{labels.read_text()}\n{line}\n")
    assert f"{labels}, line" in message(tmp_path, "val")


@pytest.mark.parametrize(
    "label", [np.ones((2, 3, 4)), np.full((2, 3), -1), np.full((2, 3), np.nan), np.full((2, 3), 7e4)]
)
def test_invalid_arrays_in_matlab_files_are_rejected(tmp_path, label):
    io = pytest.importorskip("scipy.io")
    published_pascal(tmp_path)
    path = tmp_path / "trainval" / "2008_000003.mat"
    io.savemat(path, {"LabelMap": label})
    with pytest.raises(DataError, match=r"2008_000003\.mat"):
        open_segmentation_set(tmp_path, "val").load(0)
    io.savemat(path, {"LabelMap": np.zeros((10_000, 10_000), np.uint8)}, do_compression=True)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="10000"):
        open_segmentation_set(tmp_path, "val").load(0)


def test_suggestions_are_short(tmp_path):
    """16-bit masks with other content, such as depth, do not give a long list of classes."""
    picture(tmp_path / "images" / "train" / "a.jpg", 200, 300)
    save(tmp_path / "masks" / "train" / "a.png", np.arange(60_000, dtype=np.uint16).reshape(200, 300))
    text = message(tmp_path, "train")
    assert "a.png" in text and "255" in text and len(text) < 1000
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(LabelRangeError, match=r"value 2 \(1 pixels\), 3 \(1 pixels\)") as caught:
        open_segmentation_set(tmp_path, "train").load(0)
    assert len(str(caught.value)) < 1000


def test_values_out_of_range_are_counted_over_the_whole_mask(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 9, (30, 40)).astype(np.uint16) * 1000
    picture(tmp_path / "images" / "train" / "a.jpg", 30, 40)
    save(tmp_path / "masks" / "train" / "a.png", values)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a"], "labels": {"0": "a", "3000": "ignore"}}))
    text = ", ".join(f"{value} ({(values == value).sum()} pixels)" for value in (1000, 2000, 4000, 5000, 6000))
    for pixels in (1, 100, 10**6):
        monkeypatch.setattr(images, "BLOCK_PIXELS", pixels)
        with pytest.raises(LabelRangeError) as caught:
            open_segmentation_set(tmp_path, "train").load(0)
        assert f"value {text} and 2 more" in str(caught.value)
