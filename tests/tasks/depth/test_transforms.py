import dataclasses

import numpy as np
import pytest
import torch
from torch import Generator

from vitsplit.errors import ConfigError
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.transforms import LARGEST_VALUE, augment, change_colors

PLAIN = DepthConfig(crop_size=(40, 60), rotate_share=0.0, flip=0.0, color_share=0.0)
STEP = 0.05


def generator(seed):
    return Generator().manual_seed(seed)


def ramp(height=80, width=100):
    """Red increases to the right, green downward; the depth increases with both and so encodes the position."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([2 * columns, 2 * rows, torch.full_like(rows, 7)]).to(torch.uint8)
    return image, (1 + STEP * columns + 10 * rows).float()


def place(depth):
    """Row and column that a depth came from."""
    rows = ((depth - 1) / 10).floor()
    return rows, (depth - 1 - 10 * rows) / STEP


def assert_aligned(image, depth, tolerance):
    """Image and depth map have the same positions wherever the depth is valid."""
    rows, columns = place(depth)
    valid = depth > 0
    # At the edges a bilinear rotation blends with the black around the image.
    inside = valid & (rows > 1) & (rows < 78) & (columns > 1) & (columns < 98)
    assert inside.float().mean() > 0.5
    assert float((image[0] / 2 - columns)[inside].abs().max()) <= tolerance
    assert float((image[1] / 2 - rows)[inside].abs().max()) <= tolerance


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("settings", [{}, {"flip": 1.0}, {"rotate_share": 1.0, "rotate": 10.0}], ids=str)
def test_image_and_depth_move_together(settings, seed):
    image, depth, _ = augment(*ramp(), dataclasses.replace(PLAIN, **settings), generator(seed))
    assert image.shape == (3, 40, 60) and depth.shape == (40, 60)
    assert image.dtype == torch.uint8 and depth.dtype == torch.float32
    assert image.is_contiguous() and depth.is_contiguous()
    assert_aligned(image, depth, tolerance=1.5 if settings.get("rotate") else 0.01)


def test_transforms_do_not_interpolate_depth():
    image, depth = ramp()
    known = set(depth.flatten().tolist()) | {0.0}
    config = dataclasses.replace(DepthConfig(crop_size=(40, 60)), rotate_share=1.0, image_scale=(90, 55))
    for seed in range(5):
        assert set(augment(image, depth, config, generator(seed))[1].flatten().tolist()) <= known


def test_rotation_invalidates_only_the_corners():
    config = dataclasses.replace(PLAIN, crop_size=(80, 100), rotate_share=1.0, rotate=10.0)
    share, middle = [], []
    for seed in range(20):
        depth = augment(*ramp(), config, generator(seed))[1]
        share.append(float((depth == 0).float().mean()))
        middle.append(bool((depth[20:60, 25:75] > 0).all()))
    assert all(middle) and 0 < max(share) < 0.15


def test_rotations_follow_their_range_and_probability():
    config = dataclasses.replace(PLAIN, crop_size=(80, 100), rotate_share=0.5, rotate=2.5)
    turned, angles = 0, []
    for seed in range(200):
        depth = augment(*ramp(), config, generator(seed))[1]
        if torch.equal(depth, ramp()[1]):
            continue
        turned += 1
        (top, left), (bottom, right) = (place(depth[row, column]) for row, column in ((40, 20), (40, 80)))
        angles.append(np.degrees(np.arctan2(float(bottom - top), float(right - left))))
    # A rotation too small to move a nearest neighbor cannot be detected.
    assert 70 <= turned <= 120
    assert -3.6 < min(angles) < -1.5 and 1.5 < max(angles) < 3.6, "2.5 degrees, give or take a pixel in 60"


def test_flips_follow_their_probability():
    config = dataclasses.replace(PLAIN, crop_size=(80, 100), flip=0.5)
    depth = ramp()[1]
    flipped = sum(torch.equal(augment(*ramp(), config, generator(seed))[1], depth.flip(-1)) for seed in range(200))
    assert 75 <= flipped <= 125


def test_the_border_is_cropped_first():
    config = dataclasses.replace(PLAIN, border=(8, 5, 10, 20), crop_size=(30, 40))
    seen = set()
    for seed in range(60):
        rows, columns = place(augment(*ramp(), config, generator(seed))[1])
        assert rows.min() >= 8 and rows.max() <= 69 and columns.min() >= 4.99 and columns.max() <= 79.01
        seen |= {int(rows.min()), 1000 + round(float(columns.max()))}
    assert len(seen) > 30, "crops are drawn from all of the rest"
    whole = dataclasses.replace(config, crop_size=(62, 75))
    rows, columns = place(augment(*ramp(), whole, generator(0))[1])
    assert (int(rows.min()), int(rows.max())) == (8, 69)
    assert (round(float(columns.min())), round(float(columns.max()))) == (5, 79)
    with pytest.raises(ConfigError, match=r"--border 40 0 40 0 .*100x80"):
        augment(*ramp(), dataclasses.replace(PLAIN, border=(40, 0, 40, 0)), generator(0))


def test_resizing_keeps_depth_values():
    config = dataclasses.replace(PLAIN, image_scale=(50, 40), crop_size=(40, 50))
    image, depth, _ = augment(*ramp(), config, generator(0))
    rows, columns = place(depth)
    assert_aligned(image, depth, tolerance=1.0)
    assert float(rows.max()) > 75 and float(columns.max()) > 95, "the whole image, at half its size"


def test_smaller_images_are_padded_below_and_at_the_right_with_invalid_depth():
    image, depth, extent = augment(*ramp(), dataclasses.replace(PLAIN, crop_size=(90, 130)), generator(0))
    assert extent == (80, 100)
    assert image.shape == (3, 90, 130) and depth.shape == (90, 130)
    assert torch.equal(depth[:80, :100], ramp()[1]) and torch.equal(image[:, :80, :100], ramp()[0])
    assert not depth[80:].any() and not depth[:, 100:].any()
    assert not image[:, 80:].any() and not image[..., 100:].any()


def test_color_augmentation_follows_its_formula():
    """255 (x/255)^gamma brightness color lies between the extremes of the three factors, which are about reached."""
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    outs = np.stack([change_colors(values, generator(seed)).numpy() for seed in range(400)]).reshape(400, 3, 256)
    x = np.arange(256) / 255
    low, high = 255 * x**1.1 * 0.75 * 0.9, np.minimum(255, 255 * x**0.9 * 1.25 * 1.1)
    assert (outs >= low - 0.51).all() and (outs <= high + 0.51).all()
    assert outs[..., 128].min() < low[128] + 12 and outs[..., 128].max() > high[128] - 15
    assert (np.diff(outs.astype(int), axis=-1) >= 0).all(), "darker stays darker"
    assert (outs[:, 0] != outs[:, 1]).any(), "every channel has a factor of its own"
    # One gamma and brightness for all channels: their quotient is the same for every value.
    quotient = outs[:, 0, 40:150:10] / np.maximum(outs[:, 1, 40:150:10], 1)
    assert np.ptp(quotient, axis=-1).max() < 0.06


@pytest.mark.parametrize(("color_values", "largest", "at_128"), [("0-1", 1, (97, 162)), ("0-255", 255, (75, 214))])
def test_color_distribution_equals_the_release(color_values, largest, at_128):
    """The release's ColorAug in NumPy: image**gamma * brightness * color, cut to the range. Quantiles of many draws."""
    rng = np.random.default_rng(0)
    gamma, brightness, color = (rng.uniform(*each, 40_000) for each in ((0.9, 1.1), (0.75, 1.25), (0.9, 1.1)))
    values = [10, 60, 128, 240]
    image = torch.tensor(values, dtype=torch.uint8).expand(3, 1, 4)
    draws = [change_colors(image, generator(seed), LARGEST_VALUE[color_values])[1, 0].tolist() for seed in range(3000)]
    for value, ours in zip(values, np.array(draws).T, strict=True):
        theirs = np.clip((value * largest / 255) ** gamma * brightness * color * 255 / largest, 0, 255)
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=1 + 0.04 * value)
        if value == 128:
            assert (np.quantile(ours, 0.05), np.quantile(ours, 0.95)) == pytest.approx(at_128, abs=4)


def test_color_values_sets_the_range():
    config = dataclasses.replace(PLAIN, crop_size=(80, 100), color_share=1.0)
    for color_values, largest in LARGEST_VALUE.items():
        own = dataclasses.replace(config, color_values=color_values)
        found = [augment(*ramp(), own, generator(seed))[0] for seed in range(5)]
        at = generator(0)
        for _ in range(2):  # rotation and flip
            torch.rand((), generator=at)
        for _ in range(2):  # the crop's place
            torch.randint(1, (), generator=at)
        torch.rand((), generator=at)
        assert torch.equal(found[0], change_colors(ramp()[0], at, largest))


def test_color_augmentation_follows_its_probability():
    config = dataclasses.replace(PLAIN, crop_size=(80, 100), color_share=0.5)
    image, depth = ramp()
    results = [augment(image, depth, config, generator(seed)) for seed in range(200)]
    assert all(torch.equal(result[1], depth) for result in results)
    assert 75 <= sum(not torch.equal(result[0], image) for result in results) <= 125
