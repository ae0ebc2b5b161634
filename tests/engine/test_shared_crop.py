"""The shared crop of all labels, against segmentation's own augmentation and against the pixels of the image."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitsplit.engine.run_data import SharedCrops
from vitsplit.engine.shared_crop import random_crop
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.task import DepthTask
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.task import DetectionTask
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.task import SegmentationTask
from vitsplit.tasks.segmentation.transforms import augment
from vitsplit.train_config import GeometryConfig

GEOMETRY = GeometryConfig(crop_size=(40, 56), image_scale=(64, 48), scale_range=(0.6, 1.6))
HEIGHT, WIDTH = 72, 96
TOP, LEFT, BOTTOM, RIGHT = 24, 20, 60, 70  # an object, at 2 m; behind it, 5 m


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("geometry", [GEOMETRY, dataclasses.replace(GEOMETRY, image_scale=None, photometric=False)])
def test_the_crops_equal_the_segmentation_augmentation(geometry):
    image_CHW = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8, generator=generator(0))
    mask_HW = torch.randint(0, 9, (50, 70), dtype=torch.uint8, generator=generator(1))
    own = SegmentationConfig().with_crop(geometry)
    assert own.max_class_ratio == 1.0
    for seed in range(20):
        expected_CHW, expected_HW, _ = augment(image_CHW, mask_HW, own, generator(seed))
        crop, crop_CHW = random_crop(image_CHW, geometry, generator(seed))
        assert crop_CHW.equal(expected_CHW)
        assert crop.cut_label(mask_HW, 255).equal(expected_HW)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> SharedCrops:
    """One image: a white object on black, with all labels."""
    root = tmp_path_factory.mktemp("square") / "data"
    object_HW = np.zeros((HEIGHT, WIDTH), bool)
    object_HW[TOP:BOTTOM, LEFT:RIGHT] = True
    box = [LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP]
    for split in ("train", "val"):
        for kind in ("images", "masks", "depth", "annotations"):
            (root / kind / ("" if kind == "annotations" else split)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(255 * object_HW)).convert("RGB").save(root / "images" / split / "a.png")
        Image.fromarray(np.uint8(object_HW)).save(root / "masks" / split / "a.png")
        np.save(root / "depth" / split / "a.npy", np.where(object_HW, np.float32(2.0), np.float32(5.0)))
        x1, y1, x2, y2 = LEFT, TOP, RIGHT, BOTTOM
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        annotation["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        annotations = {
            "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
            "categories": [{"id": 1, "name": "object"}],
            "annotations": [annotation],
        }
        (root / "annotations" / f"{split}.json").write_text(json.dumps(annotations))
    (root / "classes.json").write_text('["nothing", "object"]')
    geometry = dataclasses.replace(GEOMETRY, photometric=False)
    splits = ("train", "val")
    tasks = {
        "segmentation": SegmentationTask.open(SegmentationConfig().with_crop(geometry), root, splits),
        "depth": DepthTask.open(DepthConfig().with_crop(geometry), root, splits),
        "detection": DetectionTask.open(DetectionConfig().with_crop(geometry), root, splits),
    }
    return SharedCrops.match(geometry, {name: task.train_data() for name, task in tasks.items()})


def seen(image_CHW):
    """The columns and rows where the object is, from the pixels."""
    white_HW = image_CHW[0] > 127
    rows, columns = torch.where(white_HW.any(1))[0], torch.where(white_HW.any(0))[0]
    return columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1


def test_labels_are_aligned_with_the_image(data):
    zooms = set()
    for seed in range(30):
        sample = data[0, seed]
        image_CHW = sample["segmentation"].image_CHW
        assert sample["depth"].image_CHW is image_CHW and sample["detection"].image_CHW is image_CHW
        assert image_CHW.shape == (3, 40, 56)
        white_HW = image_CHW[0] > 127
        mask_HW, depth_HW = sample["segmentation"].mask_HW, sample["depth"].depth_HW
        # Resized edges are gray: they may be on either side.
        grey_HW = (image_CHW[0] > 0) & (image_CHW[0] < 255)
        assert ((mask_HW == 1) == white_HW)[~grey_HW & (mask_HW != 255)].all()
        depths = depth_HW[depth_HW > 0].unique()
        assert ((depth_HW == depths.min()) == white_HW)[~grey_HW & (depth_HW > 0)].all()
        assert ((depth_HW == 0) == (mask_HW == 255)).all(), "no depth where there is no image"
        assert depths.max() / depths.min() == pytest.approx(2.5)
        boxes_N4, objects_NHW = sample["detection"].boxes_N4, sample["detection"].masks_NHW
        assert boxes_N4[0].tolist() == pytest.approx(seen(image_CHW), abs=1.01)
        assert (objects_NHW[0].bool() == (mask_HW == 1))[~grey_HW].all()
        zooms.add(round(2.0 / depths.min().item(), 3))
    assert min(zooms) < 0.8 and max(zooms) > 1.4


def test_depth_scales_inversely_with_size(data):
    """For a pinhole camera, size in pixels times depth is size in meters times the focal length: a constant."""
    found = []
    for seed in range(60):
        crop, _ = random_crop(torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), data.geometry, generator(seed))
        sample = data[0, seed]
        x1, y1, x2, y2 = sample["detection"].boxes_N4[0].tolist()
        whole = x1 > 0 and y1 > 0 and x2 < crop.part.width and y2 < crop.part.height
        if whole:
            depth = sample["depth"].depth_HW[sample["depth"].depth_HW > 0].min().item()
            found.append((x2 - x1) * depth)
    assert len(found) > 5
    # At test time the image is 64 x 48: the object is (70 - 20) * 2 / 3 pixels wide, at 2 m.
    assert found == pytest.approx([50 * 2 / 3 * 2.0] * len(found), rel=0.04)


@pytest.mark.parametrize("pad_color", ["black", "mean"])
def test_every_head_gets_the_extent_of_the_image(data, pad_color):
    geometry = dataclasses.replace(data.geometry, pad_color=pad_color)
    found = set()
    for seed in range(20):
        sample = dataclasses.replace(data, geometry=geometry)[0, seed]
        mask_HW = sample["segmentation"].mask_HW
        end = (int((mask_HW != 255).any(1).sum()), int((mask_HW != 255).any(0).sum()))
        assert {each.extent for each in sample.values()} == {end if pad_color == "mean" else None}
        found.add(end)
    assert len(found) > 3
    own = [task().with_crop(geometry) for task in (SegmentationConfig, DepthConfig, DetectionConfig)]
    assert {each.pad_color for each in own} == {pad_color}
