import dataclasses

import pytest
import torch
from label_files import HEIGHT, WIDTH, coco_content, coco_image, coco_object, picture, write_coco

from vitsplit.data.images import read_image
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSample, collate
from vitsplit.tasks.detection.layouts import open_detection_set
from vitsplit.tasks.detection.transforms import TrainDetection

SQUARE = [[10, 5, 30, 5, 30, 35, 10, 35]]


def sample(height, width, crowds, with_masks=True):
    count = len(crowds)
    return DetectionSample(
        torch.randint(1, 256, (3, height, width), dtype=torch.uint8),
        torch.rand(count, 4),
        torch.arange(count),
        torch.ones(count, height, width, dtype=torch.uint8) if with_masks else None,
        torch.tensor(crowds, dtype=torch.bool),
        f"{height}.png",
        height,
    )


def test_batches_are_padded_and_crowds_are_excluded():
    samples = [sample(20, 30, [False, True, False]), sample(25, 10, []), sample(8, 8, [True])]
    batch = collate(samples)
    assert batch.image_BCHW.shape == (3, 3, 25, 30) and batch.sizes == [(20, 30), (25, 10), (8, 8)]
    for image_CHW, each in zip(batch.image_BCHW, samples, strict=True):
        height, width = each.image_CHW.shape[1:]
        assert torch.equal(image_CHW[:, :height, :width], each.image_CHW)
        assert image_CHW.sum() == each.image_CHW.sum()
    assert [labels.tolist() for labels in batch.labels] == [[0, 2], [], []]
    assert torch.equal(batch.boxes[0], samples[0].boxes_N4[[0, 2]])
    assert [tuple(masks.shape) for masks in batch.masks] == [(2, 25, 30), (0, 25, 30), (0, 25, 30)]
    assert batch.masks[0].sum() == 2 * 20 * 30
    assert collate([sample(8, 8, [False], with_masks=False)]).masks is None


def test_training_samples_depend_only_on_index_and_seed(tmp_path):
    objects = [coco_object(1, 1, segmentation=SQUARE), coco_object(2, 2, segmentation=SQUARE)]
    write_coco(tmp_path, coco_content([coco_image(1), coco_image(2)], objects))
    config = DetectionConfig(train_sides=(32, 40, 48), image_scale=(80, 48), crop_size=(64, 64))
    data = TrainDetection(open_detection_set(tmp_path, "train", config), config)
    assert len(data) == 2
    first, again = data[0, 7], data[0, 7]
    assert torch.equal(first.image_CHW, again.image_CHW) and torch.equal(first.masks_NHW, again.masks_NHW)
    assert {data[index, 7].image_id for index in range(2)} == {1, 2}
    assert len({tuple(data[0, seed].image_CHW.shape) for seed in range(10)}) > 2


def test_load_image_equals_load(tmp_path):
    write_coco(tmp_path, coco_content([coco_image(1)], [coco_object(1, 1)]))
    data = open_detection_set(tmp_path, "train")
    picture(tmp_path / "images" / "train" / "1.png", 5)
    assert data.load_image(0).shape == (3, HEIGHT, WIDTH)
    assert torch.equal(data.load_image(0), read_image(tmp_path / "images" / "train" / "1.png"))
    assert torch.equal(data.load_image(0), data.load(0).image_CHW)


@pytest.mark.parametrize("jitter", ["detr", "large-scale", "none"])
def test_batches_have_extents_with_mean_color_padding(tmp_path, jitter):
    content = coco_content([coco_image(1)], [coco_object(1, 1, segmentation=SQUARE)])
    write_coco(tmp_path, content)
    config = DetectionConfig(
        jitter=jitter, train_sides=(32, 40, 48), image_scale=(80, 48), crop_size=(64, 64), scale_range=(0.3, 0.9)
    )
    images = open_detection_set(tmp_path, "train", config)
    black, mean = (
        collate([TrainDetection(images, dataclasses.replace(config, pad_color=color))[0, k] for k in range(6)])
        for color in ("black", "mean")
    )
    assert black.extent_B2 is None
    # The same crops, which are white inside the image.
    assert torch.equal(black.image_BCHW, mean.image_BCHW) and black.sizes == mean.sizes
    white = [image_CHW[0] > 0 for image_CHW in mean.image_BCHW]
    ends = [[int(each.any(1).sum()), int(each.any(0).sum())] for each in white]
    assert mean.extent_B2.tolist() == ends
    assert all(each.sum() == height * width for each, (height, width) in zip(white, ends, strict=True))
    assert mean.to("meta").extent_B2.device.type == "meta"
