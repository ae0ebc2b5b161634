import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vitsplit.errors import DataError
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import SegmentationSample, collate
from vitsplit.tasks.segmentation.layouts import open_segmentation_set
from vitsplit.tasks.segmentation.transforms import TrainSegmentation

RNG = np.random.default_rng(0)


def make(root, masks, classes=("a", "b", "c"), size=(12, 16)):
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True)
    for k, mask in enumerate(masks):
        pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / "train" / f"{k}.png")
        Image.fromarray(mask).save(root / "masks" / "train" / f"{k}.png")
    (root / "classes.json").write_text(json.dumps(classes))
    return open_segmentation_set(root, "train")


def ids(low=0, high=3, size=(12, 16), dtype=np.uint8):
    return RNG.integers(low, high, size).astype(dtype)


def message(data, index=0):
    with pytest.raises(DataError) as caught:
        data.load(index)
    return str(caught.value)


def test_load_returns_image_and_mask(tmp_path):
    mask = ids()
    mask[0, :5] = 255
    data = make(tmp_path, [mask])
    sample = data.load(0)
    assert sample.mask_HW.dtype == torch.uint8 and sample.mask_HW.tolist() == mask.tolist()
    pixels = np.asarray(Image.open(tmp_path / "images/train/0.png"))
    assert np.array_equal(sample.image_CHW.numpy(), pixels.transpose(2, 0, 1))
    assert sample.name == str(tmp_path / "images/train/0.png")


def test_label_out_of_range_is_reported(tmp_path):
    mask = ids()
    mask[3, :7] = 37
    mask[4, :2] = 9
    text = message(make(tmp_path, [mask]))
    assert str(tmp_path / "masks/train/0.png") in text
    assert "value 9 (2 pixels), 37 (7 pixels)" in text
    assert "3 classes (values 0 to 2)" in text and str(tmp_path / "classes.json") in text
    assert '"labels": {"9": "ignore", ...}' in text


def test_16_bit_masks_with_a_value_map(tmp_path):
    classes = {"names": ["a", "b"], "labels": {"1000": "a", "2000": "b", "7": "b", "0": "ignore"}}
    mask = np.array([[1000, 2000, 7, 0]], np.uint16).repeat(2, 0)
    other = mask.copy()
    other[1] = 30000
    data = make(tmp_path, [mask, other], classes, size=(2, 4))
    assert data.load(0).mask_HW.tolist() == [[0, 1, 1, 255]] * 2
    assert "value 30000 (4 pixels)" in message(data, 1)


def test_size_mismatch_is_reported(tmp_path):
    text = message(make(tmp_path, [ids(size=(12, 20))]))
    assert str(tmp_path / "masks/train/0.png") in text and str(tmp_path / "images/train/0.png") in text
    assert "20x12" in text and "16x12" in text and "Export the mask" in text and "EXIF" not in text


def test_swapped_sides_mention_exif(tmp_path):
    assert "EXIF" in message(make(tmp_path, [ids(size=(16, 12))]))


def test_unreadable_files_are_named(tmp_path):
    data = make(tmp_path, [ids(), ids()])
    (tmp_path / "masks/train/0.png").write_bytes(b"")
    (tmp_path / "images/train/1.png").write_bytes(b"nothing")
    assert str(tmp_path / "masks/train/0.png") in message(data, 0)
    assert str(tmp_path / "images/train/1.png") in message(data, 1)


def test_color_masks(tmp_path):
    classes = {"names": ["a", "b"], "mask_colours": {"#ff0000": "a", "#00ff00": "b", "#000000": "ignore"}}
    mask = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 0)]], np.uint8)
    assert make(tmp_path, [mask], classes, size=(1, 3)).load(0).mask_HW.tolist() == [[0, 1, 255]]


CONFIG = SegmentationConfig(crop_size=(10, 10), image_scale=None)


def test_samples_depend_only_on_index_and_seed(tmp_path):
    data = TrainSegmentation(make(tmp_path, [ids(), ids()]), CONFIG)
    assert len(data) == 2
    keys = [(0, 5), (1, 5), (0, 6), (1, 2**62)]
    once = [data[key] for key in keys]
    again = [pickle.loads(pickle.dumps(data))[key] for key in reversed(keys)][::-1]
    for first, second in zip(once, again, strict=True):
        assert torch.equal(first.image_CHW, second.image_CHW) and torch.equal(first.mask_HW, second.mask_HW)
    assert not torch.equal(once[0].image_CHW, once[2].image_CHW)


def test_workers_do_not_change_the_samples(tmp_path):
    data = TrainSegmentation(make(tmp_path, [ids(), ids()]), CONFIG)
    keys = [(k % 2, k) for k in range(4)]
    batches = [list(DataLoader(data, batch_size=2, sampler=keys, collate_fn=collate, num_workers=n)) for n in (0, 2)]
    for first, second in zip(*batches, strict=True):
        assert torch.equal(first.image_BCHW, second.image_BCHW) and torch.equal(first.mask_BHW, second.mask_BHW)
        assert first.names == second.names


def test_collate_and_move_to_device():
    samples = [SegmentationSample(torch.full((3, 4, 5), k), torch.full((4, 5), k), f"{k}.png") for k in range(3)]
    batch = collate(samples).to("meta")
    assert batch.image_BCHW.shape == (3, 3, 4, 5) and batch.mask_BHW.shape == (3, 4, 5)
    assert batch.image_BCHW.device.type == "meta" and batch.names == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("pad_color", ["black", "mean"])
def test_crops_have_an_extent_only_with_mean_color_padding(tmp_path, pad_color):
    config = SegmentationConfig(crop_size=(40, 60), image_scale=(20, 20), photometric=False, pad_color=pad_color)
    data = TrainSegmentation(make(tmp_path, [ids(), ids()]), config)
    samples = [data[index % 2, index] for index in range(8)]
    batch = collate(samples).to("cpu")
    ends = [((mask_HW != 255).any(1).sum().item(), (mask_HW != 255).any(0).sum().item()) for mask_HW in batch.mask_BHW]
    assert len({*ends}) > 2 and max(ends) < (40, 60)
    if pad_color == "mean":
        assert [tuple(extent) for extent in batch.extent_B2.tolist()] == ends
    else:
        assert batch.extent_B2 is None and {sample.extent for sample in samples} == {None}
    for (height, width), image_CHW in zip(ends, batch.image_BCHW, strict=True):
        assert image_CHW.sum() == image_CHW[:, :height, :width].sum()
