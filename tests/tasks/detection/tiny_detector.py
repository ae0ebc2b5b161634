"""A decoder so small that a pass takes no time, objects for it, and maps on which positions can be read off."""

import dataclasses

import torch

from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import DetectionDecoder, DetectionTargets
from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES

SMALL = DetectionConfig(pyramid_width=32, anchor_sizes=(8, 16, 32, 64, 128), sampled_proposals=64)
GRID = (95, 143)
"""Odd on purpose: 1330 x 2002 pixels at patch 14."""
SIZES = (32, 64, 128, 256, 512)


def decoder(masks=True, patch_size=16, seed=0, **changes):
    torch.manual_seed(seed)
    return DetectionDecoder(32, patch_size, 3, dataclasses.replace(SMALL, **changes), masks=masks)


def targets(height, width, masks=True):
    """Two objects in the first image, none in the second."""
    masks_2HW = torch.zeros(2, height, width, dtype=torch.uint8)
    masks_2HW[0, 10:40, 12:50] = 1
    masks_2HW[1, 60:90, 30:100] = 1
    return DetectionTargets(
        [(height, width)] * 2,
        [torch.tensor([[12.0, 10, 50, 40], [30, 60, 100, 90]]), torch.zeros(0, 4)],
        [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)],
        [masks_2HW, masks_2HW[:0]] if masks else None,
    )


def coordinate_maps(patch_size, grid):
    """Per level a map whose channels are its cells' own x, y in pixels, and the number of the level."""
    maps = {}
    for level, (name, stride) in enumerate(zip((*POOLED_LEVELS, "pool"), STRIDES, strict=True)):
        rows, columns = (-(-int(side * 4) // int(stride * 4)) for side in grid)
        y = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, columns) * stride * patch_size
        x = torch.arange(columns, dtype=torch.float32)[None].expand(rows, columns) * stride * patch_size
        maps[name] = torch.stack([x, y, torch.full_like(x, level)])[None]
    return maps


def corner_boxes(patch_size, grid):
    """Boxes of many sizes that end two of the coarsest cells before the bottom right corner."""
    bottom, right = ((side - 4) * patch_size for side in grid)
    sides = [13.0, 40.7, 55.5, 90.0, 120.1, 200.0, 223.9, 400.0, 760.3, 1100.0]
    return torch.tensor([[right - side * 1.1, bottom - side / 1.1, right, bottom] for side in sides])
