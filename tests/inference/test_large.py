"""Predictions of large images, with a network that is a function of each pixel, so that the result is known."""

from __future__ import annotations

import dataclasses
import json
import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from bundles import write_segmentation_bundle
from PIL import Image
from pycocotools import mask as official

import vitsplit
from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.large import PIXELS_PER_PASS, default_tile, predict_large
from vitsplit.tasks import bare_task
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import Detections, Limits
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import one_head
from vitsplit.types import LayerTaps, Padding

pytest.importorskip("pyvips")
RNG = np.random.default_rng(0)
COLORS = [[200, 30, 30], [30, 200, 30], [30, 30, 200]]
DESCRIPTION = {"classes": ["red", "green", "blue"], "colours": COLORS, "category_ids": [5, 7, 9], "masks": True}


def stand_in(task_config: Any, output: Any) -> Any:
    """A predictor whose network is ``output`` of the pixels (float32, 0..255), and that records its inputs."""
    config = one_head(task=task_config)
    shown = []

    def forward(image_BCHW):
        shown.append(tuple(image_BCHW.shape))
        size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        return output(image_BCHW.float()), LayerTaps(image_size=size, padding=Padding(), grid=size, num_prefix_tokens=0)

    card = SimpleNamespace(config=config, description=DESCRIPTION)
    predictor = StandIn(only=SimpleNamespace(card=card, task=bare_task(config.task, DESCRIPTION), forward=forward))
    predictor.shown = shown
    return predictor


class StandIn(dict):
    """A predictor of one head."""

    shown: list[tuple[int, ...]]


def segmenter(**settings: Any) -> Any:
    """The class is the largest of red, green and blue."""
    config = SegmentationConfig(**{"crop_size": (48, 64), "image_scale": (40, 30), "test_mode": "whole"} | settings)
    return stand_in(config, lambda image_BCHW: image_BCHW / 16)


def patches(height, width, cell=16):
    """Squares of random colors, so that blended probabilities have one winner."""
    small = RNG.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
    return np.kron(small, np.ones((cell, cell, 1), np.uint8))[:height, :width]


def save(path, array):
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (10, 3000), (300, 7), (48, 64), (150, 210)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_tiled_segmentation_equals_the_whole_image(tmp_path, size, suffix):
    array = patches(*size)
    model = segmenter()
    paths = predict_large(model, save(tmp_path / f"a.{suffix}", array), tmp_path / "out", "sub/a")
    mask, overlay = paths
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        f"sub/a_mask.{suffix}",
        "sub/a_overlay.jpg",
    ]
    image = Image.open(mask)
    assert image.mode == "P" and image.getpalette()[:9] == [value for color in COLORS for value in color]
    assert np.array_equal(np.asarray(image), array.argmax(-1))
    assert Image.open(overlay).size == (size[1], size[0])
    # The bundle's image_scale would have resized tiles to 30 pixels.
    assert {shape[-2:] for shape in model.shown} == {(min(48, size[0]), min(64, size[1]))}


def test_tiled_depth_equals_the_whole_image(tmp_path):
    array = patches(150, 210)
    config = DepthConfig(crop_size=(48, 64), image_scale=(40, 30), test_flip=True)
    model = stand_in(config, lambda image_BCHW: image_BCHW.mean(1, keepdim=True) / 10)
    paths = predict_large(model, save(tmp_path / "a.png", array), tmp_path, "a")
    assert [path.name for path in paths] == ["a_depth.tif", "a_depth.jpg"]
    meters = np.asarray(Image.open(paths[0]))
    assert meters.dtype == np.float32
    assert np.allclose(meters, array.mean(-1) / 10, atol=1e-4)


def test_tiles_are_predicted_in_batches(tmp_path):
    model = segmenter()
    predict_large(model, save(tmp_path / "a.png", patches(100, 1000)), tmp_path, "a")
    most = max(batch for batch, *_ in model.shown)
    assert most > 1 and most * 48 * 64 <= PIXELS_PER_PASS


def test_progress_counts_the_tiles_of_the_grid(tmp_path):
    seen = []
    predict_large(segmenter(), save(tmp_path / "a.png", patches(100, 130)), tmp_path, "a", overlap=10,
                  on_tile=lambda done, total: seen.append((done, total)))  # fmt: skip
    # Three rows of tiles of 48 (48 + 2 * 38 >= 100), three columns of 64 (64 + 2 * 54 >= 130).
    assert seen[-1] == (9, 9) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_tile_and_overlap_can_be_set(tmp_path):
    model = segmenter()
    path = save(tmp_path / "a.png", patches(100, 130))
    predict_large(model, path, tmp_path, "a", tile=(32, 40), overlap=16)
    assert {shape[-2:] for shape in model.shown} == {(32, 40)}
    with pytest.raises(ConfigError, match="--overlap 17"):
        predict_large(model, path, tmp_path, "a", tile=(32, 40), overlap=17)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_predictions_at_another_scale_have_the_image_size(tmp_path, scale):
    array = patches(120, 200, cell=40)
    model = segmenter()
    mask, _ = predict_large(model, save(tmp_path / "a.png", array), tmp_path, "a", scale=scale)
    found, expected = np.asarray(Image.open(mask)), array.argmax(-1)
    assert found.shape == expected.shape
    # At the edges of the squares resizing mixes colors.
    y, x = np.indices(expected.shape)
    inside = (y % 40 > 2) & (y % 40 < 37) & (x % 40 > 2) & (x % 40 < 37)
    assert np.array_equal(found[inside], expected[inside])
    assert len(model.shown) >= 1 and model.shown[0][-2:] == (48, 64)


def test_an_odd_size_at_a_scale_keeps_every_row(tmp_path):
    for height, width, scale in [(101, 67, 0.31), (53, 119, 0.77), (7, 5, 0.2)]:
        array = np.full((height, width, 3), COLORS[2], np.uint8)
        mask, _ = predict_large(segmenter(), save(tmp_path / "a.png", array), tmp_path, "a", scale=scale)
        assert np.array_equal(np.asarray(Image.open(mask)), np.full((height, width), 2))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 30_000)])
def test_extreme_shapes_through_a_real_backbone(tmp_path, height, width):
    path = save(tmp_path / "a.png", patches(height, width))
    model = vitsplit.load(write_segmentation_bundle(tmp_path / "bundle"))
    assert model.predict(path)["segmentation"].mask.shape == (height, width)
    mask, _ = predict_large(model, path, tmp_path / "out", "a")
    assert Image.open(mask).size == (width, height)


def test_default_tiles_and_scale_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vitsplit")
    path = save(tmp_path / "wide.png", patches(100, 130))
    predict_large(segmenter(), path, tmp_path, "a", tile=(48, 64))
    assert caplog.messages == []
    predict_large(segmenter(), path, tmp_path, "a", overlap=10)
    # The bundle's images were resized to a shorter side of 30.
    assert caplog.messages[0] == "wide.png: 100x130 pixels (height x width) in 9 tiles of 48x64, at scale 1"
    assert "--scale: 30" in caplog.messages[1]
    caplog.clear()
    predict_large(segmenter(), path, tmp_path, "a", scale=0.5)
    predict_large(segmenter(image_scale=None), path, tmp_path, "a")
    assert len(caplog.messages) == 2


def test_the_overlay_of_a_large_image_is_small(tmp_path):
    _, overlay = predict_large(segmenter(), save(tmp_path / "a.png", patches(20, 9001)), tmp_path, "a")
    assert Image.open(overlay).size == (3001, 7)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_a_damaged_file_is_named_and_leaves_no_output(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"truncated or corrupt|cannot be read in strips") as caught:
        predict_large(segmenter(), path, tmp_path / "out", "a")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_default_tiles():
    depth = stand_in(DepthConfig(crop_size=(30, 50)), None)
    detection = stand_in(DetectionConfig(image_scale=(120, 80)), None)
    assert default_tile(segmenter().values()) == (48, 64)
    assert default_tile([*depth.values(), *segmenter().values()]) == (48, 64)
    assert default_tile(detection.values()) == (80, 120)


def find_rectangles(limits, image_BCHW):
    """A perfect detector of red, green and blue rectangles on black: what a decoder hands out."""
    found = []
    for image_CHW in image_BCHW.numpy():
        boxes, labels = [], []
        for label in range(3):
            regions, _ = scipy.ndimage.label((image_CHW.argmax(0) == label) & (image_CHW[label] > 100))
            for rows, columns in scipy.ndimage.find_objects(regions):
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                labels.append(label)
        count = len(boxes)
        boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        scores_N = torch.linspace(0.9, 0.6, count)
        found.append(Detections(boxes_N4, torch.tensor(labels), scores_N, torch.ones(count, 28, 28), limits))
    return found


def detector(**settings: Any) -> Any:
    config = DetectionConfig(**{"image_scale": (80, 60)} | settings)
    return stand_in(config, lambda image_BCHW: find_rectangles(Limits.of(config), image_BCHW))


RECTANGLES = [  # box (x, y, width, height) and class: small, cut by one border, by a corner, longer than a tile, large
    ((5, 5, 20, 12), 0),
    ((50, 30, 35, 10), 1),
    ((45, 50, 40, 35), 2),
    ((20, 100, 170, 14), 0),
    ((100, 120, 90, 70), 1),
    ((150, 10, 30, 60), 2),
]


def fills_its_box(entry, size):
    """Whether a mask is its box; where it ends, the mask head's bins may round by a pixel."""
    x, y, width, height = (int(value) for value in entry["bbox"])
    outside_HW, inside_HW = np.ones(size, dtype=bool), np.zeros(size, dtype=bool)
    outside_HW[y : y + height, x : x + width] = False
    inside_HW[y + 1 : y + height - 1, x + 1 : x + width - 1] = True
    mask_HW = official.decode(entry["segmentation"]).astype(bool)
    return mask_HW.shape == size and mask_HW[inside_HW].all() and not mask_HW[outside_HW].any()


def test_objects_cut_by_tiles_are_joined(tmp_path):
    array = np.zeros((200, 200, 3), np.uint8)
    for (x, y, width, height), label in RECTANGLES:
        array[y : y + height, x : x + width] = COLORS[label]
    paths = predict_large(detector(), save(tmp_path / "a.png", array), tmp_path, "a")
    assert [path.name for path in paths] == ["a_detections.json", "a_overlay.jpg"]
    entries = json.loads(paths[0].read_text())
    found = sorted((tuple(entry["bbox"]), entry["category_id"], entry["category"]) for entry in entries)
    names = ["red", "green", "blue"]
    assert found == sorted((box, [5, 7, 9][label], names[label]) for box, label in RECTANGLES)
    for entry in entries:
        assert fills_its_box(entry, (200, 200))
    # The overlay is tinted, and outlined, where objects are.
    picture = np.asarray(Image.open(paths[1])).astype(int)
    assert picture.shape == (200, 200, 3) and picture[95, 195].max() < 20


def test_objects_at_another_scale_are_in_image_pixels(tmp_path):
    array = np.zeros((120, 160, 3), np.uint8)
    array[40:80, 60:140] = COLORS[1]
    entries = json.loads(
        predict_large(detector(), save(tmp_path / "a.png", array), tmp_path, "a", scale=0.5)[0].read_text()
    )
    assert [entry["bbox"] for entry in entries] == [[60, 40, 80, 40]]
    assert fills_its_box(entries[0], (120, 160))


def test_no_objects(tmp_path):
    paths = predict_large(detector(), save(tmp_path / "a.png", np.zeros((90, 90, 3), np.uint8)), tmp_path, "a")
    assert json.loads(paths[0].read_text()) == []


def test_several_bundles_share_one_pass_per_tile(tmp_path, monkeypatch):
    runs = {
        "rooms": write_segmentation_bundle(tmp_path / "rooms", num_tuned_layers=2, seed=1),
        "cars": write_segmentation_bundle(tmp_path / "cars", num_tuned_layers=4, num_classes=3, seed=2),
    }
    path = save(tmp_path / "a.png", patches(100, 130))
    alone = [predict_large(vitsplit.load(run), path, tmp_path / name, "a")[0] for name, run in runs.items()]
    together = {name: vitsplit.load(run) for name, run in runs.items()}
    shared = next(iter(together.values())).backbone
    for each in together.values():
        each.backbone = shared
    calls = []
    original = Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, *args: (calls.append(args[0].shape), original(self, *args))[1]
    )
    tiles = []
    paths = predict_large(together, path, tmp_path / "both", "a", on_tile=lambda done, total: tiles.append(done))
    assert sum(shape[0] for shape in calls) == tiles[-1]
    assert [path.name for path in paths] == [
        "a_rooms_mask.png", "a_rooms_overlay.jpg", "a_cars_mask.png", "a_cars_overlay.jpg",
    ]  # fmt: skip
    for one, two in zip(alone, paths[::2], strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_the_settings_of_the_bundle_are_unchanged(tmp_path):
    model = segmenter()
    before = dataclasses.asdict(model["only"].task.config)
    predict_large(model, save(tmp_path / "a.png", patches(60, 60)), tmp_path, "a")
    assert dataclasses.asdict(model["only"].task.config) == before
