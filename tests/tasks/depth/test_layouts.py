import logging
import os

import numpy as np
import pytest
from depth_files import millimeters, write_image, write_map, write_set

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.depth.layouts import list_depth_splits, open_depth_set, recognize


def listed(root, name, lines):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(f"{line}\n" for line in lines))


def test_the_scale_of_a_folder_is_read(tmp_path):
    write_set(tmp_path, [millimeters(), millimeters()])
    write_set(tmp_path, [millimeters()], split="val")
    assert recognize(tmp_path) == (tmp_path, "folder")
    assert list_depth_splits(tmp_path) == ("train", "val")
    data = open_depth_set(tmp_path, "train")
    assert (len(data), data.scale, data.split) == (2, 0.001, "train")
    assert data.items[1] == (tmp_path / "images/train/1.png", tmp_path / "depth/train/1.png")


def test_a_different_depth_scale_flag_is_used_with_a_warning(tmp_path, caplog):
    write_set(tmp_path, [millimeters()])
    assert open_depth_set(tmp_path, "train", depth_scale=0.001).scale == 0.001
    assert not caplog.messages
    assert open_depth_set(tmp_path, "train", depth_scale=0.5).scale == 0.5, "the flag is used"
    assert "--depth-scale 0.5" in caplog.text and "depth.json (0.001)" in caplog.text


def test_a_folder_without_splits_is_split(tmp_path):
    for k in range(10):
        write_image(tmp_path / "images" / f"{k}.jpg")
        write_map(tmp_path / "depth" / f"{k}.npy", np.ones((12, 16), np.float32))
    parts = [{pair[0].name for pair in open_depth_set(tmp_path, split).items} for split in ("train", "val")]
    assert (len(parts[0]), len(parts[1])) == (8, 2) and not parts[0] & parts[1]


def test_integer_maps_require_a_scale(tmp_path):
    write_set(tmp_path, [millimeters()], scale=None)
    with pytest.raises(DataError, match=r"0\.png: .*--depth-scale \(0\.001: .*depth\.json") as caught:
        open_depth_set(tmp_path, "train")
    assert '{"scale": 0.001}' in str(caught.value)
    assert open_depth_set(tmp_path, "train", depth_scale=0.001).scale == 0.001


def test_float_maps_need_no_scale(tmp_path):
    write_set(tmp_path, [np.ones((12, 16), np.float32)], suffix=".tif", scale=None)
    assert open_depth_set(tmp_path, "train").scale is None


@pytest.mark.parametrize("text", ["0.001", "{}", '{"scale": 0}', '{"scale": "mm"}', '{"scale": true}', "{", "[1]"])
def test_a_broken_scale_file_is_named(tmp_path, text):
    write_set(tmp_path, [millimeters()])
    (tmp_path / "depth.json").write_text(text)
    with pytest.raises(DataError, match=r"depth\.json"):
        open_depth_set(tmp_path, "train")


def test_nyuv2_lists(tmp_path):
    # Lines as in the public lists: the training list's paths begin with a slash.
    listed(tmp_path, "nyu_train.txt", ["/kitchen_0028b/rgb_00045.jpg /kitchen_0028b/sync_depth_00045.png 518.8579"])
    listed(tmp_path, "nyu_test.txt", ["bathroom/rgb_00045.jpg bathroom/sync_depth_00045.png 518.8579"])
    for folder in (tmp_path / "kitchen_0028b", tmp_path / "official_splits/test/bathroom"):
        write_image(folder / "rgb_00045.jpg")
        write_map(folder / "sync_depth_00045.png", np.full((12, 16), 2345, np.uint16))
    assert recognize(tmp_path)[1] == "nyuv2"
    assert list_depth_splits(tmp_path) == ("train", "val")
    for split, folder in (("train", "kitchen_0028b"), ("val", "bathroom"), ("test", "bathroom")):
        data = open_depth_set(tmp_path, split)
        assert [image_path.parent.name for image_path, _ in data.items] == [folder]
        assert data.load(0).depth_HW.unique().tolist() == pytest.approx([2.345])


def test_kitti_skips_images_without_depth_with_a_warning(tmp_path, caplog):
    day, drive = "2011_09_26", "2011_09_26_drive_0002_sync"
    image = f"{day}/{drive}/image_02/data/{{}}.png"
    depth = f"{drive}/proj_depth/groundtruth/image_02/{{}}.png"
    lines = [f"{image.format(k)} {'None' if k == 1 else depth.format(k)} 721.5377" for k in range(3)]
    listed(tmp_path, "kitti_eigen_test.txt", lines)
    for k in range(3):
        write_image(tmp_path / "input" / image.format(k))
    write_map(tmp_path / "gt_depth" / depth.format(0), np.full((12, 16), 256 * 7, np.uint16))
    # The official archive has a folder per half.
    write_map(tmp_path / "data_depth_annotated/val" / depth.format(2), np.full((12, 16), 256 * 9, np.uint16))
    assert recognize(tmp_path)[1] == "kitti"
    assert list_depth_splits(tmp_path) == ("val",)
    with caplog.at_level(logging.WARNING, logger="vitsplit"):
        data = open_depth_set(tmp_path, "val")
    assert [float(data.load(k).depth_HW.max()) for k in range(2)] == [7.0, 9.0]
    assert "skipped 1 images" in caplog.text and image.format(1) in caplog.text


def test_listed_files_that_are_missing_are_counted(tmp_path):
    listed(tmp_path, "nyu_test.txt", [f"a/rgb_{k}.jpg a/depth_{k}.png 518.8579" for k in range(4)])
    write_image(tmp_path / "a/rgb_0.jpg")
    with pytest.raises(DataError, match=r"nyu_test\.txt: 7 .*4"):
        open_depth_set(tmp_path, "val")
    with pytest.raises(DataError, match=r"nyu_train\.txt"):
        open_depth_set(tmp_path, "train")
    listed(tmp_path, "nyu_test.txt", ["only_one_column.jpg"])
    with pytest.raises(DataError, match=r"line 1: 'only_one_column\.jpg'"):
        open_depth_set(tmp_path, "val")


def test_other_folders_and_names_are_rejected(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="not recognized as a depth data set"):
        open_depth_set(tmp_path, "train")
    write_set(tmp_path, [millimeters()])
    with pytest.raises(ConfigError, match="'nyu'"):
        open_depth_set(tmp_path, "train", "nyu")
    with pytest.raises(ConfigError, match="'training'"):
        open_depth_set(tmp_path, "training")
    with pytest.raises(DataError, match=r"format nyuv2.*nyu_train\.txt"):
        open_depth_set(tmp_path, "train", "nyuv2")
    (tmp_path / "images/train/extra.png").write_bytes((tmp_path / "images/train/0.png").read_bytes())
    with pytest.raises(DataError, match=r"1 of 2 images"):
        open_depth_set(tmp_path, "train")


@pytest.mark.parametrize(
    "scale",
    [
        '"1_0"',
        '"0.001"',
        "true",
        "null",
        "0",
        "-0.001",
        "1e-30",
        "1e30",
        "1e999",
        "NaN",
        "Infinity",
        "[0.001]",
        "9" * 5000,
    ],
)
def test_invalid_scales_are_rejected(tmp_path, scale):
    write_set(tmp_path, [millimeters()])
    for text in (f'{{"scale": {scale}}}', f'{{"scale": 0.001, "scale": {scale}}}'):
        (tmp_path / "depth.json").write_text(text)
        with pytest.raises(DataError, match=r"depth\.json") as caught:
            open_depth_set(tmp_path, "train")
        assert len(str(caught.value)) < 1000
    (tmp_path / "depth.json").unlink()
    os.mkfifo(tmp_path / "depth.json")
    with pytest.raises(DataError, match=r"depth\.json"):
        open_depth_set(tmp_path, "train")


@pytest.mark.parametrize("name", ["../outside.png", "a/../../outside.png", "//../outside.png", "a\x00.png", "x" * 2000])
@pytest.mark.parametrize("file", ["nyu_train.txt", "kitti_eigen_train.txt"])
def test_lists_cannot_leave_their_folder(tmp_path, name, file):
    root = tmp_path / "data"
    write_image(root / "a.png")
    write_image(tmp_path / "outside.png")
    for line in (f"{name} a.png 500", f"a.png {name} 500"):
        listed(root, file, ["a.png a.png 500", line])
        with pytest.raises(DataError, match=rf"{file}, line 2"):
            open_depth_set(root, "train")
    listed(root, file, ["a.png a.png 500", "/./a.png a.png 500"])
    assert len(open_depth_set(root, "train")) == 2
