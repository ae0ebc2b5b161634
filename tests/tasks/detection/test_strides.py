"""Positions at the far corner of large images, where a wrong stride has the largest effect."""

import pytest
import torch
from tiny_detector import GRID, SIZES, coordinate_maps, corner_boxes
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES
from vitsplit.tasks.detection.strides import ExactAnchors, exact_pool


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("bins", [7, 14])
def test_pooling_is_exact_in_the_far_corner(patch_size, bins):
    """Coordinates are linear, so their mean over a bin is the coordinate of its center."""
    boxes_N4 = corner_boxes(patch_size, GRID)
    size = (GRID[0] * patch_size, GRID[1] * patch_size)
    pooled = exact_pool(patch_size, bins)(coordinate_maps(patch_size, GRID), [boxes_N4], [size])
    steps = (torch.arange(bins) + 0.5) / bins
    for axis in (0, 1):
        low, high = boxes_N4[:, axis, None], boxes_N4[:, axis + 2, None]
        centers = low + (high - low) * steps
        found = pooled[:, axis].mean(1 if axis == 0 else 2)
        torch.testing.assert_close(found, centers, rtol=0, atol=2e-3)
    # FPN, Eq. 1, with its 224 pixels at stride 16 as 14 cells.
    side_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1).sqrt()
    levels_N = (2 + torch.log2(side_N / (14 * patch_size)) + 1e-6).floor().clamp(0, 3)
    assert torch.equal(pooled[:, 2, 0, 0].round(), levels_N)
    assert levels_N.unique().tolist() == [0, 1, 2, 3]


def test_torchvision_pooling_is_inexact_at_patch_14():
    boxes_N4 = corner_boxes(14, GRID)
    theirs = MultiScaleRoIAlign([*POOLED_LEVELS], 7, 2)
    pooled = theirs(coordinate_maps(14, GRID), [boxes_N4], [(GRID[0] * 14, GRID[1] * 14)])
    assert (pooled[:, 0].mean((1, 2)) - (boxes_N4[:, 0] + boxes_N4[:, 2]) / 2).abs().max() > 14


def test_pooling_and_anchors_at_patch_16_equal_torchvision():
    torch.manual_seed(0)
    grid, size = (32, 48), (512, 768)
    maps = {
        name: torch.randn(2, 8, int(grid[0] / stride), int(grid[1] / stride))
        for name, stride in zip((*POOLED_LEVELS, "pool"), STRIDES, strict=True)
    }
    corners_N2 = torch.rand(40, 2) * torch.tensor([600.0, 400.0])
    boxes_N4 = torch.cat([corners_N2, corners_N2 + 5 + torch.rand(40, 2) ** 3 * 600], 1).clamp(max=512)
    boxes = [boxes_N4[:25], boxes_N4[25:]]
    expected = MultiScaleRoIAlign([*POOLED_LEVELS], 7, 2)(maps, boxes, [size, size])
    torch.testing.assert_close(exact_pool(16, 7)(maps, boxes, [size, size]), expected, rtol=0, atol=1e-5)
    images = ImageList(torch.zeros(2, 3, *size), [size, size])
    theirs = AnchorGenerator(tuple((side,) for side in SIZES), ((0.5, 1.0, 2.0),) * 5)(images, [*maps.values()])
    ours = ExactAnchors(SIZES, 16)(images, [*maps.values()])
    assert len(ours) == len(theirs) == 2
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchors_are_aligned_in_the_far_corner(patch_size, dtype):
    maps = coordinate_maps(patch_size, GRID)
    images = ImageList(torch.zeros(1), [(GRID[0] * patch_size, GRID[1] * patch_size)])
    (anchors_A4,) = ExactAnchors(SIZES, patch_size)(images, [level.to(dtype) for level in maps.values()])
    assert anchors_A4.dtype == torch.float32
    per_level = anchors_A4.split([3 * level.shape[-2] * level.shape[-1] for level in maps.values()])
    for level, anchors, side in zip(maps.values(), per_level, SIZES, strict=True):
        centers_A2 = (anchors[:, :2] + anchors[:, 2:]) / 2
        expected_A2 = level[0, :2].flatten(1).T.repeat_interleave(3, 0)
        torch.testing.assert_close(centers_A2, expected_A2, rtol=0, atol=1e-3)
        width_A, height_A = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
        torch.testing.assert_close((height_A / width_A)[:3], torch.tensor([0.5, 1.0, 2.0]), rtol=0.1, atol=0)
        torch.testing.assert_close((height_A * width_A).sqrt(), torch.full_like(width_A, side), rtol=0.05, atol=0)
