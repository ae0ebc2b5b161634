import colorsys
import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from vitsplit.data.crops import Crop, random_size
from vitsplit.data.photometric import adjust_hue_saturation, distort
from vitsplit.data.resizing import fit_size
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.transforms import augment, varied_crop

PLAIN = SegmentationConfig(
    crop_size=(40, 56), image_scale=None, scale_range=(1.0, 1.0), max_class_ratio=1.0, flip=0.0, photometric=False
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def coordinates(height, width):
    """An image whose first channel is its column and second its row, and a mask that is 1 in its right half."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.zeros_like(rows)]).astype(np.uint8)
    return torch.from_numpy(image), torch.from_numpy((columns >= width // 2).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [  # mmcv.rescale_size of (width, height), written out by hand
        ((480, 640), (2048, 512), (512, 683)),
        ((640, 480), (512, 2048), (683, 512)),
        ((1024, 2048), (2048, 1024), (1024, 2048)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((37, 53), None, (37, 53)),
    ],
)
def test_fit_size_equals_mmcv(size, scale, expected):
    assert fit_size(size, scale) == expected


def test_fit_size_fills_the_box_without_leaving_it():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, box = tuple(rng.integers(20, 900, 2).tolist()), tuple(rng.integers(20, 900, 2).tolist())
        height, width = fit_size(size, box)
        assert max(height, width) <= max(box) and min(height, width) <= min(box)
        assert max(height, width) == max(box) or min(height, width) == min(box)
        assert abs(height / size[0] - width / size[1]) < 0.6 / min(size)


def test_random_size_covers_the_range():
    shorts = [min(random_size((120, 160), (400, 100), (0.5, 2.0), seeded(seed))) for seed in range(400)]
    assert 50 <= min(shorts) < 55 and 195 < max(shorts) <= 200
    assert abs(np.mean(shorts) - 125) < 5  # the factor is uniform, so its mean is 1.25


def test_crop_is_aligned_between_image_and_mask():
    image_CHW, mask_HW = coordinates(100, 200)
    corners = set()
    for seed in range(50):
        out_CHW, out_HW, _ = augment(image_CHW, mask_HW, PLAIN, seeded(seed))
        assert out_CHW.shape == (3, 40, 56) and out_HW.shape == (40, 56)
        left, top = int(out_CHW[0, 0, 0]), int(out_CHW[1, 0, 0])
        corners.add((top, left))
        assert torch.equal(out_CHW, image_CHW[:, top : top + 40, left : left + 56])
        assert torch.equal(out_HW, mask_HW[top : top + 40, left : left + 56])
    assert len(corners) > 40


def test_every_crop_position_is_equally_likely():
    image_CHW, mask_HW = coordinates(40, 60)
    lefts = [int(augment(image_CHW, mask_HW, PLAIN, seeded(seed))[0][0, 0, 0]) for seed in range(1000)]
    counts = np.bincount(lefts, minlength=5)
    assert len(counts) == 5 and ((counts - 200) ** 2 / 200).sum() < 18.5  # chi-squared, 4 degrees, p = 0.001


def test_image_and_mask_stay_aligned():
    config = dataclasses.replace(PLAIN, scale_range=(0.5, 2.0), flip=0.5)
    image_CHW, mask_HW = coordinates(120, 240)
    for seed in range(60):
        out_CHW, out_HW, _ = augment(image_CHW, mask_HW, config, seeded(seed))
        inside = out_HW != 255
        says_right = out_CHW[0].float() >= 119.5
        wrong = (says_right != (out_HW == 1)) & inside
        near_edge = (out_CHW[0].float() - 119.5).abs() < 2.0  # there the bilinear image and the nearest mask may differ
        assert not (wrong & ~near_edge).any()


def test_crop_of_a_resized_image_equals_resize_and_crop():
    """Resizing the whole image and then cropping, as mmseg does, gives the same where windows fall on whole pixels."""
    image_CHW = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 60, 80), dtype=np.uint8))
    mask_HW = torch.from_numpy(np.random.default_rng(1).integers(0, 5, (60, 80), dtype=np.uint8))
    crop = Crop(10, 20, 40, 60, height=60, width=80)
    out_CHW, out_HW = crop.image(image_CHW), crop.labels(mask_HW)
    whole_CHW = F.resize(image_CHW, [120, 160], antialias=True)[:, 20:80, 40:120]
    inner = slice(2, -2)  # at the edge of the crop the filter has no pixels outside
    assert (out_CHW.int() - whole_CHW.int())[:, inner, inner].abs().max() <= 1
    assert torch.equal(out_HW, mask_HW.repeat_interleave(2, 0).repeat_interleave(2, 1)[20:80, 40:120])


def test_downscaled_masks_use_pixel_centers():
    """The mask is aligned with the bilinear image, without an offset of half a pixel."""
    mask_HW = torch.arange(81, dtype=torch.uint8).reshape(9, 9)
    assert torch.equal(Crop.whole((9, 9)).resize((3, 3)).labels(mask_HW), mask_HW[1::3, 1::3])


def test_small_image_is_padded_below_and_right():
    image_CHW, mask_HW = coordinates(30, 50)
    out_CHW, out_HW, _ = augment(image_CHW + 1, mask_HW, PLAIN, seeded(0))
    assert torch.equal(out_CHW[:, :30, :50], image_CHW + 1) and torch.equal(out_HW[:30, :50], mask_HW)
    assert out_CHW[:, 30:].max() == 0 and out_CHW[:, :, 50:].max() == 0
    assert (out_HW[30:] == 255).all() and (out_HW[:, 50:] == 255).all()


def test_flip_probability_is_one_half():
    config = dataclasses.replace(PLAIN, flip=0.5, crop_size=(10, 20))
    image_CHW, mask_HW = coordinates(10, 20)
    flipped = 0
    for seed in range(1000):
        out_CHW, out_HW, _ = augment(image_CHW, mask_HW, config, seeded(seed))
        mirrored = int(out_CHW[0, 0, 0]) == 19
        flipped += mirrored
        assert torch.equal(out_CHW, image_CHW.flip(-1) if mirrored else image_CHW)
        assert torch.equal(out_HW, mask_HW.flip(-1) if mirrored else mask_HW)
    assert abs(flipped - 500) < 3.3 * np.sqrt(250)


def class_shares(mask_HW):
    values, counts = np.unique(mask_HW[mask_HW != 255], return_counts=True)
    return dict(zip(values.tolist(), (counts / max(counts.sum(), 1)).tolist(), strict=True))


def test_crops_of_one_class_are_drawn_again():
    config = dataclasses.replace(PLAIN, crop_size=(20, 20), max_class_ratio=0.75)
    mask_HW = torch.zeros(20, 100, dtype=torch.uint8)
    mask_HW[:, 80:] = 1
    mask_HW[:, :10] = 255
    accepted = lambda left: max(class_shares(mask_HW[:, left : left + 20].numpy()).values(), default=1.0) < 0.75
    single = np.mean([accepted(left) for left in range(81)])  # an eighth of the positions
    lefts = [int(varied_crop(mask_HW, (20, 100), config, seeded(seed)).left) for seed in range(600)]
    expected = 1 - (1 - single) ** 10
    assert abs(np.mean([accepted(left) for left in lefts]) - expected) < 0.07
    assert abs(expected - single) > 0.5


def test_ignored_pixels_do_not_count_in_the_class_ratio():
    """In every crop here 60 % is ignored, and of the rest one class has 80 %: more than the limit of 75 %."""
    config = dataclasses.replace(PLAIN, crop_size=(10, 10), max_class_ratio=0.75)
    row = torch.tensor([255] * 6 + [0, 0, 0, 1], dtype=torch.uint8)
    mask_HW = row.repeat(10, 3)
    mask_HW[::5, 9::10] = 0  # 32 of 40 labeled pixels in any crop are class 0
    draws = count_draws(mask_HW, (10, 30), config)
    assert draws == 10
    mask_HW[mask_HW == 255] = 2
    assert count_draws(mask_HW, (10, 30), config) == 1


def count_draws(mask_HW, size, config):
    """How many crops were drawn: two random numbers each."""
    generator = seeded(3)
    varied_crop(mask_HW, size, config, generator)
    state = generator.get_state()
    other = seeded(3)
    for draws in range(1, 20):
        for spare in (size[0] - config.crop_size[0], size[1] - config.crop_size[1]):
            torch.randint(spare + 1, (), generator=other)
        if torch.equal(other.get_state(), state):
            return draws
    raise AssertionError("more than 19 draws")


def test_hue_and_saturation_are_those_of_hsv():
    image_CHW = torch.from_numpy(np.random.default_rng(2).random((3, 12, 12), dtype=np.float32))
    image_CHW[:, 0] = image_CHW[:1, 0]  # a row of gray levels
    image_CHW[:, 1, :3] = torch.eye(3)
    for turn, factor in ((0.08, 1.0), (-0.3, 1.4), (0.0, 0.6)):
        out_CHW = adjust_hue_saturation(image_CHW, turn, factor)
        for y in range(12):
            for x in range(12):
                hue, saturation, value = colorsys.rgb_to_hsv(*image_CHW[:, y, x].tolist())
                expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, min(saturation * factor, 1.0), value)
                assert out_CHW[:, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_hue_equals_torchvision():
    image_CHW = torch.rand(3, 64, 64, generator=seeded(0))
    expected_CHW = F.adjust_hue(image_CHW, 0.07)
    assert torch.allclose(adjust_hue_saturation(image_CHW, 0.07, 1.0), expected_CHW, atol=1e-5)


def test_distortion_of_a_gray_image_is_brightness_and_contrast():
    """Hue and saturation do not change gray, so the drawn factors can be computed: the image becomes a * (x + b)."""
    levels = np.arange(60, 120)
    image_CHW = torch.from_numpy(levels.astype(np.uint8)).expand(3, 4, 60)
    slopes, offsets = [], []
    for seed in range(800):
        out_CHW = distort(image_CHW, seeded(seed))
        assert torch.equal(out_CHW[0], out_CHW[1]) and torch.equal(out_CHW[0], out_CHW[2])
        slope, constant = np.polyfit(levels, out_CHW[0, 0].double().numpy(), 1)
        slopes.append(slope)
        offsets.append(constant / slope)
    slopes, offsets = np.array(slopes), np.array(offsets)
    assert 0.49 < slopes.min() < 0.55 and 1.45 < slopes.max() < 1.51
    assert -33.5 < offsets.min() < -29 and 29 < offsets.max() < 33.5
    three_sigma = 3 * 0.5 / np.sqrt(800)
    assert abs((np.abs(slopes - 1) > 0.02).mean() - 0.5 * 0.96) < three_sigma
    assert abs((np.abs(offsets) > 2).mean() - 0.5 * 30 / 32) < three_sigma


def test_hue_distortion_is_limited():
    image_CHW = torch.tensor([130, 70, 70], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)  # hue 0, never clipped
    turns = []
    for seed in range(600):
        hue, _, _ = colorsys.rgb_to_hsv(*(distort(image_CHW, seeded(seed))[:, 0, 0] / 255).tolist())
        turns.append((hue + 0.5) % 1.0 - 0.5)
    turns = np.array(turns)
    assert -0.115 < turns.min() < -0.09 and 0.09 < turns.max() < 0.115
    assert abs((np.abs(turns) > 0.01).mean() - 0.45) < 3 * 0.5 / np.sqrt(600)


def test_augmentation_depends_only_on_the_seed():
    config = dataclasses.replace(PLAIN, scale_range=(0.5, 2.0), flip=0.5, photometric=True, max_class_ratio=0.75)
    image_CHW = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 90, 120), dtype=np.uint8))
    mask_HW = torch.from_numpy(np.random.default_rng(4).integers(0, 4, (90, 120), dtype=np.uint8))
    before = image_CHW.clone()
    first = augment(image_CHW, mask_HW, config, seeded(5))
    torch.rand(7)  # the global generator must have no effect
    second = augment(image_CHW, mask_HW, config, seeded(5))
    other = augment(image_CHW, mask_HW, config, seeded(6))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(image_CHW, before)
    assert first[0].dtype == torch.uint8 and first[1].dtype == torch.uint8
    assert first[0].is_contiguous() and first[1].is_contiguous()
