import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from vitsplit.data.classes import ClassList
from vitsplit.errors import ConfigError
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import Detections, Limits
from vitsplit.tasks.detection.draw import OPACITY, draw_objects
from vitsplit.tasks.detection.predict import detect
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.types import LayerTaps, Padding

CONFIG = DetectionConfig(image_scale=(200, 100))
CLASSES = ClassList(names=("cup", "plate"), colors=((250, 220, 30), (20, 60, 200)))


def found(boxes, scores=None, masks=None, limits=None):
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    scores_N = torch.tensor(scores or [0.9] * len(boxes_N4))
    labels_N = torch.arange(len(boxes_N4)) % 2
    return Detections(boxes_N4, labels_N, scores_N, masks, limits or Limits.of(CONFIG))


class Fixed:
    """Finds the same objects in every image, which it pads by 3 at the left and 5 above."""

    def __init__(self, detections):
        self.detections, self.sizes = detections, []

    def __call__(self, image_BCHW):
        size = tuple(image_BCHW.shape[-2:])
        self.sizes.append(size)
        taps = LayerTaps(size, Padding(left=3, top=5, right=4, bottom=1), (1, 1), 1)
        return [self.detections] * len(image_BCHW), taps


def image(height, width):
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def prediction(boxes, height=90, width=120, masks=None, scores=None):
    each = found(boxes, scores)
    picture = image(height, width)[0].permute(1, 2, 0).numpy()
    return DetectionPrediction(
        each.boxes_N4.numpy(), each.labels_N.numpy(), each.scores_N.numpy(), masks, CLASSES, (4, 11), picture
    )


def test_boxes_are_in_image_pixels():
    """300 x 400 becomes 75 x 100; boxes put where the padded small image has them come back."""
    wanted_N4 = torch.tensor([[30.0, 60, 210, 399], [0, 0, 300, 400]])
    forward = Fixed(found((wanted_N4 / 4 + torch.tensor([3.0, 5, 3, 5])).tolist()))
    (mine,) = detect(forward, image(400, 300), dataclasses.replace(CONFIG, image_scale=(100, 100)))
    assert forward.sizes == [(100, 75)]
    torch.testing.assert_close(mine.boxes_N4, wanted_N4, rtol=0, atol=1e-3)


def test_boxes_are_clipped_and_dropped_in_the_padding():
    boxes = [[0, 0, 50, 40], [0, 0, 3, 40], [1, 1, 200, 5], [90, 90, 500, 500]]
    bins = torch.rand(4, 28, 28)
    (mine,) = detect(Fixed(found(boxes, [0.9, 0.8, 0.7, 0.6], bins)), image(100, 200), CONFIG)
    assert mine.boxes_N4.tolist() == [[0, 0, 47, 35], [87, 85, 200, 100]]
    assert mine.labels_N.tolist() == [0, 1]
    torch.testing.assert_close(mine.scores_N, torch.tensor([0.9, 0.6]))
    assert torch.equal(mine.masks_Nmm, bins[[0, 3]])


def test_narrower_limits_are_applied_and_wider_ones_rejected():
    forward = Fixed(found([[3, 5, 23 + n, 35] for n in range(4)], [0.9, 0.6, 0.4, 0.2]))
    fewer = dataclasses.replace(CONFIG, score_threshold=0.3, max_detections=2)
    torch.testing.assert_close(detect(forward, image(100, 200), fewer)[0].scores_N, torch.tensor([0.9, 0.6]))
    strict = dataclasses.replace(CONFIG, score_threshold=0.5)
    assert len(detect(forward, image(100, 200), strict)[0].boxes_N4) == 2
    for changes, flag in (
        ({"score_threshold": 0.01}, "--score-threshold 0.01"),
        ({"max_detections": 300}, "--max-detections 300"),
        ({"nms_threshold": 0.6}, "--nms-threshold 0.6"),
    ):
        with pytest.raises(ConfigError, match=flag):
            detect(forward, image(100, 200), dataclasses.replace(CONFIG, **changes))


def test_masks_round_trip_through_bins():
    """The bins that training aims at, pasted again, give the shape back."""
    y, x = np.mgrid[:90, :120]
    shape_HW = ((y - 40) / 30) ** 2 + ((x - 70) / 35) ** 2 < 1
    shape_HW[30:50, 60:80] = False
    box = torch.tensor([[35.0, 10, 106, 71]])
    bins = project_masks_on_boxes(torch.from_numpy(shape_HW)[None].float(), box, torch.zeros(1), 28)
    masks = prediction(box.tolist(), masks=bins.numpy()).masks
    assert masks.shape == (1, 90, 120) and masks.dtype == bool
    assert (masks[0] & shape_HW).sum() / (masks[0] | shape_HW).sum() > 0.93


def test_masks_equal_torchvision():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, [100, 70], (60, 2))
    boxes = np.concatenate([corners, np.minimum(corners + rng.uniform(0.3, 90, (60, 2)), [120, 90])], 1)
    boxes[:8] = [[0, 0, 120, 90], [0, 20.7, 3.2, 30], [110.4, 80, 120, 90], [0, 0, 0.4, 0.4]] * 2
    bins = rng.random((60, 28, 28), dtype=np.float32)
    mine = prediction(boxes.tolist(), masks=bins)
    theirs = paste_masks_in_image(torch.from_numpy(bins)[:, None], torch.from_numpy(mine.boxes), (90, 120))
    assert np.array_equal(mine.masks, (theirs[:, 0] > 0.5).numpy())


def test_masks_without_objects_and_without_masks():
    assert prediction([], masks=np.zeros((0, 28, 28), np.float32)).masks.shape == (0, 90, 120)
    assert prediction([[1, 2, 3, 4]]).masks is None
    with pytest.raises(ValueError, match="boxes only"):
        next(prediction([[1, 2, 3, 4]]).each_mask())


def test_saved_results_can_be_read_by_the_official_tool(tmp_path):
    boxes = [[10.25, 20, 60.5, 70], [30, 5, 119, 88]]
    bins = np.random.default_rng(0).random((2, 28, 28), dtype=np.float32)
    mine = prediction(boxes, masks=bins, scores=[0.75, 0.25])
    json_path, overlay_path = mine.save(tmp_path / "new", "inner/photo")
    assert json_path == tmp_path / "new" / "inner" / "photo_detections.json"
    assert Image.open(overlay_path).size == (120, 90) and overlay_path.name == "photo_overlay.jpg"
    entries = json.loads(json_path.read_text())
    assert [entry["category"] for entry in entries] == ["cup", "plate"]
    assert [entry["image_id"] for entry in entries] == ["photo", "photo"]
    coco_path, _ = mine.save(tmp_path, "000000397133")
    assert {entry["image_id"] for entry in json.loads(coco_path.read_text())} == {397133}
    truth = {"images": [{"id": "photo", "height": 90, "width": 120}], "annotations": []}
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"categories": [{"id": 4}, {"id": 11}], "info": {}}))
    read = COCO(str(tmp_path / "truth.json")).loadRes(str(json_path))
    for entry, box, label, score, mask_HW in zip(
        read.loadAnns(read.getAnnIds()), boxes, (4, 11), (0.75, 0.25), mine.masks, strict=True
    ):
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box)
        assert (entry["category_id"], entry["score"]) == (label, score)
        assert np.array_equal(coco_mask.decode(entry["segmentation"]).astype(bool), mask_HW)


def test_the_overlay_shows_objects_above_the_score_threshold():
    boxes = [[20, 30, 70, 80], [75, 40, 110, 85]]
    mine = prediction(boxes, scores=[0.9, 0.1], masks=np.ones((2, 28, 28), np.float32))
    shown, everything = np.asarray(mine.overlay()), np.asarray(mine.overlay(min_score=0))
    assert np.array_equal(shown[45:, 75:], mine.image[45:, 75:]), "the weak object is not drawn"
    assert not np.array_equal(everything[45:, 75:], mine.image[45:, 75:])
    tinted = (1 - OPACITY) * mine.image[50, 40] + OPACITY * np.array(CLASSES.colors[0])
    assert np.abs(shown[50, 40] - tinted).max() <= 1
    assert tuple(shown[60, 20]) == tuple(shown[60, 69]) == CLASSES.colors[0], "the box's edge, inside of the box"
    assert np.array_equal(shown[60, 71], mine.image[60, 71])
    assert np.array_equal(np.asarray(prediction([]).overlay()), mine.image)


@pytest.mark.parametrize("size", [(1, 1), (10, 300), (300, 10)], ids=str)
def test_overlays_of_tiny_and_narrow_images(size):
    box = np.array([[0, 0, size[1], size[0]]], dtype=np.float32)
    picture = draw_objects(np.zeros((*size, 3), np.uint8), box, ["a long name 0.99"], [(255, 0, 0)])
    assert picture.size == (size[1], size[0])


def test_captions_of_neighboring_objects_do_not_overlap():
    boxes = np.array([[20, 60, 120, 150], [25, 62, 130, 160], [30, 64, 125, 155]], dtype=np.float32)
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]

    def filled(kept):
        picture = draw_objects(np.zeros((200, 200, 3), np.uint8), boxes[kept], ["object"] * len(kept),
                               [colors[index] for index in kept])  # fmt: skip
        return [int((np.asarray(picture) == colors[index]).all(-1).sum()) for index in kept]

    frames = [2 * (int(x2 - x1) + int(y2 - y1)) for x1, y1, x2, y2 in boxes]
    together, alone = filled([0, 1, 2]), [filled([index])[0] for index in range(3)]
    for count, single, frame in zip(together, alone, frames, strict=True):
        assert count > single - frame, "a caption is hidden only where thin frames cross it"
