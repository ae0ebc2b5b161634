import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vitsplit.data.classes import ClassList
from vitsplit.errors import ConfigError
from vitsplit.tasks.segmentation import predict as predict_module
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.predict import class_shares, resize_rows, segment_with_scores, windows
from vitsplit.tasks.segmentation.predict import segment as segment_batch
from vitsplit.tasks.segmentation.prediction import SegmentationPrediction
from vitsplit.types import LayerTaps, Padding

PATCH = 4
WHOLE = SegmentationConfig(test_mode="whole", image_scale=None, crop_size=(16, 20))
SLIDE = dataclasses.replace(WHOLE, test_mode="slide")


def segment(forward, image_CHW, config):
    return segment_batch(forward, image_CHW[None], config)[0][0]


class ColourModel:
    """Logits that are the colors themselves, at one value per patch of a padded image; counts its calls."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, image_BCHW):
        self.sizes.append(tuple(image_BCHW.shape))
        size = tuple(image_BCHW.shape[-2:])
        (top, bottom), (left, right) = ((-side % PATCH // 2, (-side % PATCH + 1) // 2) for side in size)
        logits = F.avg_pool2d(F.pad(image_BCHW.float(), (left, right, top, bottom)), PATCH)
        return logits, LayerTaps(size, Padding(left, top, right, bottom), tuple(logits.shape[-2:]), 1)


def _blocks(height, width, seed=0):
    """An image of large blocks, each of one pure color, and its mask."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 3, size=(-(-height // 8), -(-width // 8))).repeat(8, 0).repeat(8, 1)[:height, :width]
    return torch.from_numpy(np.eye(3, dtype=np.uint8)[mask] * 255).permute(2, 0, 1), torch.from_numpy(
        mask.astype(np.uint8)
    )


@pytest.mark.parametrize("window", [(4, 4), (5, 3), (1, 7), (30, 30)], ids=str)
def test_windows_cover_every_pixel_and_keep_their_size(window):
    for height, width in itertools.product(range(1, 23, 3), range(1, 23, 2)):
        for stride in {window, (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3)), (1, 1)}:
            seen = np.zeros((height, width), dtype=int)
            boxes = list(windows((height, width), window, stride))
            for top, left, bottom, right in boxes:
                assert (bottom - top, right - left) == (min(window[0], height), min(window[1], width))
                assert top >= 0 and left >= 0 and bottom <= height and right <= width
                seen[top:bottom, left:right] += 1
            assert seen.min() >= 1
            assert len(boxes) == len(set(boxes)), "no window twice"


def test_windows_equal_mmseg():
    """The release's loop, written out: 1024 x 2048 in windows of 896 at a stride of 512."""
    expected = []
    for row, column in itertools.product(range(2), range(4)):
        bottom, right = min(row * 512 + 896, 1024), min(column * 512 + 896, 2048)
        expected.append((max(bottom - 896, 0), max(right - 896, 0), bottom, right))
    assert list(windows((1024, 2048), (896, 896), (512, 512))) == list(dict.fromkeys(expected))


def test_only_a_stride_with_gaps_is_an_error():
    with pytest.raises(ConfigError, match=r"test_stride \(4, 5\).*crop_size \(4, 4\)"):
        list(windows((20, 20), (4, 4), (4, 5)))
    for side, window, stride in itertools.product(range(1, 30), range(1, 8), range(1, 12)):
        starts = {min(start, max(0, side - window)) for start in range(0, side + stride, stride)}
        seen = {pixel for start in starts for pixel in range(start, start + window)}
        try:
            boxes = list(windows((side, 1), (window, 1), (stride, 1)))
        except ConfigError:
            assert not seen.issuperset(range(side))
        else:
            assert seen.issuperset(range(side))
            assert {pixel for top, _, bottom, _ in boxes for pixel in range(top, bottom)} == set(range(side))
    # The release's stride of 512 with windows of 480 on images of 520 leaves none.
    assert list(windows((480, 520), (480, 480), (512, 512))) == [(0, 0, 480, 480), (0, 40, 480, 520)]


@pytest.mark.parametrize("config", [WHOLE, SLIDE], ids=["whole", "slide"])
@pytest.mark.parametrize("size", [(16, 20), (33, 41), (9, 13), (48, 64)], ids=str)
def test_constant_image_has_one_class(config, size):
    for k in range(3):
        image_CHW = torch.zeros(3, *size, dtype=torch.uint8)
        image_CHW[k] = 200
        for view in ({}, {"test_flip": True, "test_scales": (0.5, 1.0, 1.5)}):
            mask_HW = segment(ColourModel(), image_CHW, dataclasses.replace(config, **view))
            assert mask_HW.shape == size and mask_HW.dtype == torch.uint8
            assert (mask_HW == k).all()


@pytest.mark.parametrize("config", [WHOLE, SLIDE], ids=["whole", "slide"])
def test_predictions_are_aligned_with_the_image(config):
    image_CHW, truth_HW = _blocks(48, 64)
    for view in ({}, {"test_flip": True}, {"test_scales": (1.0, 2.0), "test_flip": True}):
        mask_HW = segment(ColourModel(), image_CHW, dataclasses.replace(config, **view))
        assert (mask_HW == truth_HW).float().mean() > 0.95


def test_averaged_flips_are_equivariant():
    image_CHW, _ = _blocks(32, 44, seed=1)
    config = dataclasses.replace(WHOLE, test_flip=True)
    mask_HW = segment(ColourModel(), image_CHW, config)
    assert torch.equal(segment(ColourModel(), image_CHW.flip(-1), config), mask_HW.flip(-1))


def test_one_window_of_the_image_size_equals_whole_mode():
    image_CHW = torch.randint(0, 256, (3, 30, 37), dtype=torch.uint8)
    whole = segment(ColourModel(), image_CHW, WHOLE)
    for crop in ((30, 37), (64, 64)):
        model = ColourModel()
        assert torch.equal(segment(model, image_CHW, dataclasses.replace(SLIDE, crop_size=crop)), whole)
        assert model.sizes == [(1, 3, 30, 37)]


def _soft_model(image_BCHW):
    """Logits of a few units, so that probabilities are not all 0 or 1."""
    logits, taps = ColourModel()(image_BCHW)
    return logits / 60, taps


def test_windows_are_averaged_where_they_overlap():
    """Against a sum over all windows, one at a time, in numpy; both views, so that the scale of the logits matters."""
    image_CHW = torch.randint(0, 256, (3, 37, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(SLIDE, test_stride=(7, 9), test_flip=True)
    shares = np.zeros((3, 37, 45))
    for mirror in (1, -1):
        total, count = np.zeros((3, 37, 45)), np.zeros((37, 45))
        view = torch.from_numpy(image_CHW.numpy()[:, :, ::mirror].copy())
        for top in [*range(0, 37 - 16, 7), 37 - 16]:
            for left in [*range(0, 45 - 20, 9), 45 - 20]:
                logits, _ = _soft_model(view[None, :, top : top + 16, left : left + 20])
                full = F.interpolate(logits, size=(16, 20), mode="bilinear", align_corners=False)[0]
                total[:, top : top + 16, left : left + 20] += full.numpy()
                count[top : top + 16, left : left + 20] += 1
        odds = np.exp(total / count)
        shares += (odds / odds.sum(axis=0))[:, :, ::mirror]
    mask_HW = segment(_soft_model, image_CHW, config)
    assert (mask_HW.numpy() == shares.argmax(axis=0)).mean() > 0.999


def test_masks_have_the_original_image_size():
    image_CHW, truth_HW = _blocks(60, 80)
    model = ColourModel()
    mask_HW = segment(model, image_CHW, dataclasses.replace(WHOLE, image_scale=(256, 120)))
    assert model.sizes == [(1, 3, 120, 160)]
    assert mask_HW.shape == (60, 80)
    assert (mask_HW == truth_HW).float().mean() > 0.95
    model = ColourModel()
    segment(
        model, image_CHW, dataclasses.replace(WHOLE, image_scale=(256, 120), test_scales=(0.5, 1.25), test_flip=True)
    )
    assert [size[-2:] for size in model.sizes] == [(60, 80), (60, 80), (150, 200), (150, 200)]


def test_views_are_averaged_as_probabilities():
    """Views are averaged as probabilities, so a confident view has less weight than with logits."""
    answers = iter([[1000.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

    def forward(image_BCHW):
        logits = torch.tensor(next(answers)).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        return logits, LayerTaps(tuple(image_BCHW.shape[-2:]), Padding(), (4, 4), 1)

    image_CHW = torch.zeros(3, 16, 16, dtype=torch.uint8)
    # mean of [1, .27, .27] against [0, .73, .73]: class 0 has 0.513.
    assert (segment(forward, image_CHW, dataclasses.replace(WHOLE, test_scales=(1.0, 1.0, 1.0))) == 0).all()
    answers = iter([[1000.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    # mean of [1, .12, .12] against [0, .88, .88]: class 1 has 0.587; by logits class 0 would have won.
    assert (segment(forward, image_CHW, dataclasses.replace(WHOLE, test_scales=(1.0, 1.0, 1.0))) == 1).all()


@pytest.mark.parametrize("views", [{}, {"test_flip": True, "test_scales": (1.0, 0.5)}], ids=["one view", "four views"])
def test_confidence_is_the_probability_of_the_class_with_a_temperature(views, monkeypatch):
    """softmax(logits / T) of a single view; in general, mean probabilities to the power of 1/T, normalized."""
    image_CHW = torch.randint(0, 256, (3, 37, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(WHOLE, **views)
    shares_KHW = class_shares(_soft_model, image_CHW[None], config)[0].double()
    monkeypatch.setattr(predict_module, "CACHED_SCORES", 45 * 3 * 7)
    for temperature in (1.0, 0.6, 2.5):
        mask_1HW, confidence_1HW = segment_batch(_soft_model, image_CHW[None], config, temperature)
        odds_KHW = shares_KHW ** (1 / temperature)
        expected_HW = (odds_KHW / odds_KHW.sum(0)).amax(0)
        assert torch.equal(mask_1HW[0], shares_KHW.argmax(0).to(torch.uint8))
        assert confidence_1HW.dtype == torch.float32
        torch.testing.assert_close(confidence_1HW[0].double(), expected_HW, rtol=1e-4, atol=1e-5)


def test_scores_of_some_pixels(monkeypatch):
    image_BCHW = torch.randint(0, 256, (2, 3, 37, 45), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, _ = _soft_model(image_BCHW)
    pixels = [torch.tensor([0, 44, 45, 700, 37 * 45 - 1]), torch.tensor([], dtype=torch.int64)]
    monkeypatch.setattr(predict_module, "CACHED_SCORES", 2 * 45 * 3 * 7)
    masks_BHW, scores = segment_with_scores(_soft_model, image_BCHW, WHOLE, pixels)
    assert torch.equal(masks_BHW, segment_batch(_soft_model, image_BCHW, WHOLE)[0])
    padded = F.interpolate(logits, size=(40, 48), mode="bilinear", align_corners=False)
    whole_KP = padded[0, :, 1:38, 1:46].flatten(1)
    torch.testing.assert_close(scores[0], whole_KP[:, pixels[0]].T, rtol=1e-4, atol=1e-4)
    assert scores[1].shape == (0, 3)


def _prediction():
    image_CHW, truth_HW = _blocks(24, 32)
    classes = ClassList(("sky", "sea", "sand", "ship"), ((1, 2, 3), (10, 20, 30), (100, 0, 200), (9, 9, 9)))
    confidence_HW = np.ones(truth_HW.shape, np.float32)
    return SegmentationPrediction(truth_HW.numpy(), classes, image_CHW.permute(1, 2, 0).numpy(), confidence_HW)


def test_saved_files_have_ids_and_colors(tmp_path):
    prediction = _prediction()
    mask_path, overlay_path = prediction.save(tmp_path / "new" / "folder", "scene")
    assert mask_path.name == "scene_mask.png" and overlay_path.name == "scene_overlay.jpg"
    with Image.open(mask_path) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), prediction.mask)
        colors = np.asarray(picture.convert("RGB"))
    assert np.array_equal(colors, np.array(prediction.classes.colors, dtype=np.uint8)[prediction.mask])
    with Image.open(overlay_path) as picture:
        assert picture.size == (32, 24)


def test_overlay_blends_image_and_colors():
    prediction = _prediction()
    y, x = 3, 5
    color = np.array(prediction.classes.colors[prediction.mask[y, x]])
    expected = 0.25 * color + 0.75 * prediction.image[y, x]
    assert np.asarray(prediction.overlay(0.25))[y, x] == pytest.approx(expected, abs=0.51)
    assert np.array_equal(np.asarray(prediction.overlay(0.0)), prediction.image)


def test_class_shares_are_sorted_without_absent_classes():
    prediction = _prediction()
    shares = prediction.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert "ship" not in shares
    for k, name in enumerate(prediction.classes.names[:3]):
        assert shares[name] == pytest.approx(float((prediction.mask == k).mean()))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(7, 5, (23, 40)), (9, 9, (4, 3)), (1, 1, (1, 1)), (3, 2, (3, 50))]
)
def test_resized_rows_equal_the_resized_map(height, width, size):
    map_BKhw = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(map_BKhw, size=size, mode="bilinear", align_corners=False)
    for start in range(0, size[0], 5):
        rows = range(start, min(start + 5, size[0]))
        part = resize_rows(map_BKhw, size, rows)
        torch.testing.assert_close(part, whole[:, :, rows.start : rows.stop], rtol=1e-5, atol=1e-5)


def test_large_images_are_processed_in_rows(monkeypatch):
    image_CHW, _ = _blocks(60, 80)
    whole_HW = segment(ColourModel(), image_CHW, dataclasses.replace(WHOLE, test_flip=True, test_scales=(0.5, 1.0)))
    held = []
    resize = predict_module.resize_rows

    def watched(map_BKhw, size, rows):
        held.append(len(rows) * size[1] * map_BKhw.shape[1])
        return resize(map_BKhw, size, rows)

    monkeypatch.setattr(predict_module, "resize_rows", watched)
    monkeypatch.setattr(predict_module, "CACHED_SCORES", 80 * 3 * 7)
    config = dataclasses.replace(WHOLE, test_flip=True, test_scales=(0.5, 1.0))
    assert torch.equal(segment(ColourModel(), image_CHW, config), whole_HW)
    assert len(held) == 4 * 9 and max(held) <= 80 * 3 * 7
