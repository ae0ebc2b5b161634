import dataclasses

import numpy as np
import pytest
import torch
from depth_files import RNG, RedIsDepth
from matplotlib import colormaps
from PIL import Image

from vitsplit.tasks.depth.colormap import INVALID, add_scale_bar, apply_colormap, axis_ticks, display_range
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.palettes import palette
from vitsplit.tasks.depth.predict import predict_depth
from vitsplit.tasks.depth.prediction import DepthPrediction

CONFIG = DepthConfig(test_flip=False)


def prediction(depth):
    depth = np.asarray(depth, np.float32)
    return DepthPrediction(depth=depth, image=np.zeros((*depth.shape, 3), np.uint8))


def red(values):
    image = torch.zeros(len(values), 3, 8, 12, dtype=torch.uint8)
    image[:, 0] = torch.tensor(values, dtype=torch.uint8)[:, None, None]
    return image


def test_predictions_are_in_meters_at_the_image_size():
    model = RedIsDepth()
    depth = predict_depth(model, red([30, 90]), CONFIG)
    assert depth.shape == (2, 1, 8, 12) and depth.dtype == torch.float32
    assert depth[0].unique().tolist() == pytest.approx([3.0]) and depth[1].unique().tolist() == pytest.approx([9.0])
    assert len(model.sizes) == 1


def test_predictions_of_resized_images_have_the_original_size():
    model = RedIsDepth()
    depth = predict_depth(model, red([50]), dataclasses.replace(CONFIG, image_scale=(24, 16)))
    assert model.sizes == [(1, 3, 16, 24)]
    assert depth.shape == (1, 1, 8, 12) and depth.unique().tolist() == pytest.approx([5.0])


def test_the_padding_is_cropped():
    # 10 x 14 is padded to 12 x 16 with black, a pixel on every side.
    image = torch.full((1, 3, 10, 14), 80, dtype=torch.uint8)
    depth = predict_depth(RedIsDepth(), image, CONFIG)[0, 0]
    # The first and last rows of patches have 12 of 16 pixels from the image: 6 m, between them 8 m. The center of
    # padded row 6 lies an eighth of the way from the middle row of patches to the last, padded row 1 before the first.
    assert float(depth[5, 7]) == pytest.approx(7.75)
    assert float(depth[0, 7]) == pytest.approx(6.0)
    stretched = predict_depth(RedIsDepth(), image, dataclasses.replace(CONFIG, pad_output="stretch"))[0, 0]
    assert stretched.shape == (10, 14) and not torch.allclose(stretched, depth)


def test_mirrored_views_are_averaged():
    image = torch.from_numpy(RNG.integers(0, 256, (1, 3, 9, 11), dtype=np.uint8))
    # Odd sides are padded unevenly, so that the two views differ.
    plain = predict_depth(RedIsDepth(), image, CONFIG)
    mirrored = predict_depth(RedIsDepth(), image.flip(-1), CONFIG).flip(-1)
    assert not torch.allclose(plain, mirrored)
    both = predict_depth(RedIsDepth(), image, dataclasses.replace(CONFIG, test_flip=True))
    assert torch.allclose(both, (plain + mirrored) / 2, atol=1e-6)


@pytest.mark.parametrize(("farthest", "scale"), [(9.0, 0.001), (65.535, 0.001), (65.6, 0.01), (7000.0, 1.0)])
def test_saved_files(tmp_path, farthest, scale):
    depth = np.linspace(0.0011, farthest, 40, dtype=np.float32).reshape(5, 8)
    files = prediction(depth).save(tmp_path / "new", "room")
    assert [file.name for file in files] == ["room_depth.npy", "room_depth.png", "room_depth.jpg"]
    assert np.array_equal(np.load(files[0]), depth) and np.load(files[0]).dtype == np.float32
    png = Image.open(files[1])
    assert png.mode == "I;16" and float(png.text["depth_scale"]) == scale
    values = np.asarray(png)
    assert values.min() >= 1, "0 means invalid"
    assert np.abs(values * scale - depth).max() <= max(0.51 * scale, scale - 0.001), "nothing clipped"
    assert Image.open(files[2]).size[0] > 8


def test_a_saved_map_can_be_read_as_a_label(tmp_path):
    from vitsplit.tasks.depth.data import load_depth

    depth = RNG.uniform(0.5, 9.0, (6, 7)).astype(np.float32)
    npy, png, _ = prediction(depth).save(tmp_path)
    assert np.array_equal(load_depth(npy, None).numpy(), depth)
    scale = float(Image.open(png).text["depth_scale"])
    assert np.abs(load_depth(png, scale).numpy() - depth).max() <= 0.00051


def test_overlay_has_the_image_size_and_near_is_brighter():
    picture = np.asarray(prediction(np.linspace(1, 8, 200).reshape(10, 20)).overlay().convert("L")).ravel().astype(int)
    assert picture.size == 200
    # Brightness decreases with depth; single steps may differ by rounding.
    assert picture[0] > 200 and picture[-1] < 40 and (np.diff(picture) <= 2).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (200, 2), (240, 320)])
@pytest.mark.parametrize("depths", [(2.0, 2.0), (0.3, 0.35), (0.001, 0.001), (2.0, 900.0)])
def test_overlays_of_any_size_and_range(size, depths):
    depth = np.linspace(*depths, size[0] * size[1], dtype=np.float32).reshape(size)
    picture = prediction(depth).picture()
    assert prediction(depth).overlay().size == size[::-1]
    assert picture.width > size[1] + 20 and picture.height >= max(size[0], 64)


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [(1.2, 4.4, (1.0, 5.0)), (0.7, 9.9, (0.6, 10.0)), (2.0, 2.0, (2.0, 4.0)), (3.1, 78.0, (3.0, 80.0))],
)
def test_color_range_is_rounded(near, far, expected):
    depth = np.full((20, 20), near, np.float32)
    depth[10:] = far
    depth[0, :3] = 0.0
    depth[0, 3] = 1000.0  # less than a hundredth of the pixels
    assert display_range(depth) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["magma_r", "Reds"])
def test_palettes_are_matplotlibs(name):
    assert np.array_equal(palette(name), colormaps[name](np.arange(256), bytes=True)[:, :3])


def test_invalid_pixels_are_gray():
    depth = np.array([[0.0, 2.0, 0.0, 4.0]], np.float32)
    picture = np.asarray(apply_colormap(depth, depth > 0, (2.0, 4.0)))
    assert [tuple(picture[0, k]) == INVALID for k in range(4)] == [True, False, True, False]
    assert display_range(np.zeros((2, 2), np.float32)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("range_m", "ticks"),
    [((1, 5), [1, 2, 3, 4, 5]), ((0, 10), [0, 2, 4, 6, 8, 10]), ((2, 3), [2, 2.2, 2.4, 2.6, 2.8, 3]),
     ((3, 80), [20, 40, 60, 80]), ((0.1, 0.15), [0.1, 0.11, 0.12, 0.13, 0.14, 0.15])],
)  # fmt: skip
def test_ticks_are_round(range_m, ticks):
    assert axis_ticks(range_m) == pytest.approx(ticks)


def test_the_color_bar_matches_the_picture():
    depth = np.linspace(1, 5, 120, dtype=np.float32)[:, None].repeat(30, 1)
    picture = apply_colormap(depth, depth > 0, (1.0, 5.0))
    with_bar = np.asarray(add_scale_bar(picture, (1.0, 5.0))).astype(int)
    assert np.array_equal(with_bar[:120, :30], np.asarray(picture))
    bar = with_bar[:, 30 + 5 + 4]  # inside the bar: after the gap and its frame
    for share in (0.25, 0.5, 0.75):
        row = round(10 + (120 - 20 - 1) * share)
        expected = np.asarray(apply_colormap(np.array([[1 + 4 * share]], np.float32), np.array([[True]]), (1.0, 5.0)))[
            0, 0
        ]
        assert np.abs(bar[row] - expected).max() <= 6
