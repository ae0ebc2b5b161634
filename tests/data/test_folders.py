import hashlib
import logging

import pytest
from PIL import Image

from vitsplit.data.folders import index_files, list_splits, require_folder, split_pairs
from vitsplit.errors import DataError


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(path)


def message(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


def test_subfolders_uppercase_suffixes_and_hidden_files(tmp_path):
    touch(tmp_path / "b" / "x.y.PNG", tmp_path / "a.jpg", tmp_path / ".hidden.png", tmp_path / ".cache" / "c.png")
    (tmp_path / "notes.txt").write_text("")
    assert index_files(tmp_path, {".png", ".jpg"}) == {"a": tmp_path / "a.jpg", "b/x.y": tmp_path / "b" / "x.y.PNG"}


@pytest.mark.parametrize("order", ["kind/split", "split/kind"])
def test_splits_in_both_folder_orders(tmp_path, order):
    for split in ("train", "val"):
        for kind, suffix in (("images", "jpg"), ("masks", "png")):
            folder = tmp_path / kind / split if order == "kind/split" else tmp_path / split / kind
            touch(*(folder / "street" / f"{split}{k}.{suffix}" for k in range(2)))
    assert list(list_splits(tmp_path)) == ["train", "val"]
    pairs = split_pairs(tmp_path, "val")
    assert [(image.name, mask.name) for image, mask in pairs] == [("val0.jpg", "val0.png"), ("val1.jpg", "val1.png")]
    text = message(split_pairs, tmp_path, "test")
    assert "split 'test' not found, only train, val" in text and "images/test" in text


def test_split_by_hash(tmp_path, caplog):
    names = [f"img{k:03d}" for k in range(50)]
    touch(*(tmp_path / "images" / f"{name}.jpg" for name in names))
    touch(*(tmp_path / "masks" / f"{name}.png" for name in names))
    with caplog.at_level(logging.WARNING):
        val = [image.stem for image, _ in split_pairs(tmp_path, "val")]
    train = [image.stem for image, _ in split_pairs(tmp_path, "train")]
    assert "10 of 50 images" in caplog.text and str(tmp_path) in caplog.text
    assert sorted(train + val) == names
    assert val == sorted(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:10])
    assert "images/test" in message(split_pairs, tmp_path, "test")


def test_one_image_cannot_be_split(tmp_path):
    touch(tmp_path / "images" / "a.jpg", tmp_path / "masks" / "a.png")
    assert "split into train and val" in message(split_pairs, tmp_path, "val")


def test_unmatched_files_are_counted_and_five_are_named(tmp_path):
    touch(*(tmp_path / "images" / "train" / f"{k}.jpg" for k in range(9)))
    touch(*(tmp_path / "masks" / "train" / f"{k}.png" for k in range(7, 11)))
    text = message(split_pairs, tmp_path, "train")
    assert "7 of 9 images" in text and "(0, 1, 2, 3, 4, ...)" in text
    assert "2 of 4 labels" in text and "(10, 9)" in text
    assert str(tmp_path / "masks" / "train") in text and "Add the missing files, or remove these" in text


def test_two_files_with_one_stem_are_rejected(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "b.png")
    text = message(index_files, tmp_path, {".jpg", ".png"})
    assert "1 names" in text and "a.jpg and a.png" in text


def test_empty_folder_error_lists_the_files_found(tmp_path):
    (tmp_path / "images" / "train").mkdir(parents=True)
    text = message(split_pairs, tmp_path, "train")
    assert str(tmp_path / "images" / "train") in text and "*.jpg" in text and "nothing else" in text
    touch(tmp_path / "images" / "train" / "a.jpg", tmp_path / "masks" / "train" / "a.jpg")
    text = message(split_pairs, tmp_path, "train")
    assert str(tmp_path / "masks" / "train") in text and "1 *.jpg" in text


def test_unknown_layout_is_an_error(tmp_path):
    text = message(split_pairs, tmp_path, "train")
    assert str(tmp_path) in text and "masks/val" in text


def test_root_must_be_a_folder(tmp_path):
    assert "not found" in message(require_folder, tmp_path / "absent")
    (tmp_path / "file").write_text("")
    assert "not a folder" in message(require_folder, tmp_path / "file")
