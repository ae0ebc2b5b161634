"""Small files of NYUv2's structure, as MATLAB writes them: HDF5 behind a header of 512 bytes, columns first."""

import json
import re
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from vitsplit.cli.main import main
from vitsplit.data.prepare.nyuv2 import prepare_nyuv2, resize_nearest
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks import check_data

N, H, W = 12, 6, 8
TRAIN, TEST = [3, 4, 5, 6, 7, 11, 12], [1, 2, 8, 9, 10]
RAW_NAMES = ["book", "bottle", "wall", "unicorn"]
CLASS_NAMES = ["wall", "bed", "otherprop", "floor mat"]
MAP_CLASS = [4, 3, 1, 2]  # book: floor mat, bottle: otherprop, wall: wall, unicorn: bed


@pytest.fixture
def published(tmp_path):
    """The three files. Image k (from 1) has depth k meters, a hole in the raw depth, a red pixel and all raw labels."""
    noise = np.random.default_rng(0)
    images_NCWH = noise.integers(0, 200, (N, 3, W, H), dtype=np.uint8)
    images_NCWH[:, :, 7, 2] = [255, 0, 0]  # column 7, row 2
    depths_NWH = np.repeat(np.arange(1, N + 1, dtype=np.float32), W * H).reshape(N, W, H)
    depths_NWH[:, 5, 1] = 0.7126  # column 5, row 1
    raw_NWH = depths_NWH.copy()
    raw_NWH[:, 0, :] = 0
    labels_NWH = np.zeros((N, W, H), np.uint16)
    labels_NWH[:, 1, 0], labels_NWH[:, 2, 0], labels_NWH[:, 3, 0], labels_NWH[:, 4, 5] = 1, 2, 3, 4
    file = tmp_path / "labeled.mat"
    with h5py.File(file, "w", userblock_size=512) as content:
        for name, array in (("images", images_NCWH), ("depths", depths_NWH), ("labels", labels_NWH)):
            content.create_dataset(name, data=array, chunks=(3, *array.shape[1:]), compression="gzip")
        content["rawDepths"] = raw_NWH
        references = content.create_dataset("names", (1, len(RAW_NAMES)), dtype=h5py.ref_dtype)
        for k, name in enumerate(RAW_NAMES):
            content[f"#refs#/{k}"] = np.array([[ord(letter)] for letter in name], np.uint16)
            references[0, k] = content[f"#refs#/{k}"].ref
    savemat(tmp_path / "mapping.mat", mapping(MAP_CLASS, CLASS_NAMES))
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([TRAIN]).T, "testNdxs": np.array([TEST]).T})
    return file, tmp_path / "mapping.mat", tmp_path / "splits.mat", images_NCWH


def mapping(classes, names):
    return {"mapClass": np.array([classes], np.uint8), "className": np.array([names], object)}


def files(folder):
    return {split.name: [path.stem for path in sorted(split.iterdir())] for split in sorted(folder.iterdir())}


def test_row_and_column_order_is_correct(published, tmp_path):
    *paths, images_NCWH = published
    out = tmp_path / "out"
    assert prepare_nyuv2(*paths, out) == {"train": 7, "val": 5}
    for split, numbers in (("train", TRAIN), ("val", TEST)):
        for kind in ("images", "depth", "masks"):
            assert files(out / kind)[split] == [f"{k:04d}" for k in numbers]
    image = Image.open(out / "images/train/0003.png")
    assert image.size == (W, H) and image.getpixel((7, 2)) == (255, 0, 0)
    for column, row in ((0, 0), (1, 0), (0, 1), (6, 5)):
        assert image.getpixel((column, row)) == tuple(images_NCWH[2, :, column, row].tolist())
    depth = Image.open(out / "depth/val/0002.png")
    assert depth.mode.startswith("I;16") and depth.size == (W, H)
    assert (depth.getpixel((0, 0)), depth.getpixel((5, 1))) == (2000, 713)
    assert json.loads((out / "depth.json").read_text()) == {"scale": 0.001}
    mask = Image.open(out / "masks/train/0011.png")
    # Without otherprop the ids are: wall 0, bed 1, floor mat 2.
    assert json.loads((out / "classes.json").read_text()) == ["wall", "bed", "floor mat"]
    assert [mask.getpixel((column, 0)) for column in range(5)] == [255, 2, 255, 0, 255]
    assert mask.getpixel((4, 5)) == 1
    assert sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".")) == []


def test_split_train_80_20(published, tmp_path):
    out = tmp_path / "out"
    assert prepare_nyuv2(*published[:3], out, split="train-80-20") == {"train": 5, "val": 2, "test": 5}
    names = {split: [f"{k:04d}" for k in numbers] for split, numbers in
             (("train", TRAIN[:5]), ("val", TRAIN[5:]), ("test", TEST))}  # fmt: skip
    assert files(out / "images") == files(out / "masks") == files(out / "depth") == names


def test_raw_depth_keeps_invalid_pixels(published, tmp_path):
    prepare_nyuv2(*published[:3], tmp_path / "out", depth="raw")
    depth = Image.open(tmp_path / "out/depth/train/0004.png")
    assert [depth.getpixel((column, 3)) for column in (0, 1)] == [0, 4000]


def test_output_size(published, tmp_path):
    *paths, images_NCWH = published
    prepare_nyuv2(*paths, tmp_path / "out", size=(3, 4))
    image, depth, mask = (
        Image.open(tmp_path / "out" / kind / "train/0003.png") for kind in ("images", "depth", "masks")
    )
    assert image.size == depth.size == mask.size == (4, 3)
    assert set(np.unique(np.asarray(depth))) <= {713, 3000} and set(np.unique(np.asarray(mask))) <= {0, 1, 2, 255}
    # Another library's antialiased bicubic; its rounding may differ by a level or two.
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images_NCWH[2].transpose(0, 2, 1)[None]).float(), (3, 4), mode="bicubic", antialias=True
    )
    assert np.abs(np.asarray(image).transpose(2, 0, 1) - expected[0].clamp(0, 255).numpy()).max() <= 2


@pytest.mark.parametrize("size", [(3, 4), (7, 5), (13, 17), (480, 640)])
def test_nearest_resizing_equals_torch(size):
    values = torch.arange(9 * 11).reshape(9, 11)
    expected = torch.nn.functional.interpolate(values[None, None].double(), size, mode="nearest-exact")[0, 0]
    assert np.array_equal(resize_nearest(values.numpy(), size), expected.numpy())


def test_written_data_pass_the_check(published, tmp_path):
    prepare_nyuv2(*published[:3], tmp_path / "out")
    for task in ("segmentation", "depth"):
        report = check_data(tmp_path / "out", task, workers=1)
        assert report.errors == [] and {split: data.images for split, data in report.splits.items()} == {
            "train": 7,
            "val": 5,
        }


def test_prepare_command(published, tmp_path, capsys):
    file, mapping_file, splits = map(str, published[:3])
    words = ["data", "prepare", "nyuv2", file, "--mapping", mapping_file, "--splits", splits]
    assert main([*words, "--out", str(tmp_path / "out"), "--size", "3", "4", "--split", "train-80-20"]) == 0
    output = capsys.readouterr().out
    assert "5 train, 2 val, 5 test" in output and str(tmp_path / "out") in output
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_the_folder_is_renamed_when_complete(published, tmp_path):
    out = tmp_path / "out"
    calls = []

    def stop(done, total):
        calls.append((done, total))
        assert not out.exists()
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_nyuv2(*published[:3], out, progress=stop)
    assert calls == [(k, N) for k in (1, 2, 3, 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labeled.mat", "mapping.mat", "splits.mat"]


def refused(published, tmp_path, expected, **options):
    with pytest.raises((DataError, ConfigError), match=expected):
        prepare_nyuv2(*published[:3], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_truncated_file(published, tmp_path):
    content = published[0].read_bytes()
    published[0].write_bytes(content[: len(content) // 2])
    refused(published, tmp_path, r"labeled\.mat: the file is truncated .* Download it again")


def test_damaged_image(published, tmp_path):
    """The compressed block of images 7 to 9 overwritten with zeros."""
    with h5py.File(published[0], "r") as file:
        block = file["images"].id.read_direct_chunk((6, 0, 0, 0))[1]
    content = published[0].read_bytes()
    assert content.count(block) == 1
    published[0].write_bytes(content.replace(block, bytes(len(block))))
    refused(published, tmp_path, r"labeled\.mat, image 7")


def test_files_without_the_expected_arrays(published, tmp_path):
    file, mapping_file, splits, _ = published
    refused((tmp_path / "absent.mat", *published[1:]), tmp_path, "absent.mat")
    refused((mapping_file, *published[1:]), tmp_path, "mapping.mat")
    refused((file, splits, splits), tmp_path, "splits.mat: .*mapClass or className")
    refused((file, mapping_file, mapping_file), tmp_path, "mapping.mat: .*trainNdxs or testNdxs")
    refused((file, file, splits), tmp_path, "labeled.mat: ")
    with h5py.File(tmp_path / "other.mat", "w") as content:
        content["images"] = np.zeros((2, 3))
    refused((tmp_path / "other.mat", *published[1:]), tmp_path, "other.mat: .*depths or labels or names")


def test_arrays_of_the_wrong_shape_are_rejected(published, tmp_path):
    with h5py.File(published[0], "r+") as content:
        del content["labels"]
        content["labels"] = np.zeros((N, H, W), np.uint16)
    refused(published, tmp_path, re.escape(f"labels ({N}, {H}, {W})"))


def test_mapping_and_splits_of_the_wrong_length_are_rejected(published, tmp_path):
    savemat(published[1], mapping(MAP_CLASS[:-1], CLASS_NAMES))
    refused(published, tmp_path, "mapping.mat: maps 3 raw labels.* 4")
    savemat(published[1], mapping(MAP_CLASS, CLASS_NAMES[:3]))
    refused(published, tmp_path, "mapping.mat: maps to classes 1 to 4")
    savemat(published[1], mapping(MAP_CLASS, CLASS_NAMES))
    savemat(published[2], {"trainNdxs": np.array([TRAIN]).T, "testNdxs": np.array([TEST[:-1]]).T})
    refused(published, tmp_path, "splits.mat: 7 training and 4 test images .* 12 images")


def test_unknown_labels_and_implausible_depths_are_rejected(published, tmp_path):
    with h5py.File(published[0], "r+") as content:
        content["labels"][3, 0, 0] = 5
    refused(published, tmp_path, r"labeled\.mat, image 4: has label 5")
    with h5py.File(published[0], "r+") as content:
        content["labels"][3, 0, 0] = 0
        content["depths"][5, 0, 0] = 70.0
    refused(published, tmp_path, r"labeled\.mat, image 6: .*70 m")


def test_a_size_of_zero_is_rejected(published, tmp_path):
    refused(published, tmp_path, "size 0 320", size=(0, 320))


@pytest.mark.parametrize("module", ["h5py", "scipy"])
def test_missing_packages_are_named(published, tmp_path, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    refused(published, tmp_path, rf"{module}.*pip install 'vitsplit\[nyuv2\]'")
