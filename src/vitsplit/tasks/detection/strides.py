"""Anchors and pooling with the pyramid's exact strides.

torchvision infers both from the sizes of image and maps, for backbones whose strides are powers of two: it divides
sizes as integers and rounds scales to powers of two. At patch 14 the strides are 3.5, 7, 14, 28 and 56 pixels, and both
would be silently wrong, the more so the farther from the top left corner.

Shapes: N boxes, A anchors of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES

ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Height by width of the anchors."""
CANONICAL_CELLS = 14
"""An object of so many patches a side is read from the map at the patch grid: 224 pixels at stride 16 (FPN, Eq. 1)."""
SAMPLES_PER_BIN = 2
"""Points a side that a pooled value is the mean of."""


class ExactAnchors(AnchorGenerator):
    """torchvision's anchors around the points ``(i * stride, j * stride)``, in float32 whatever the maps are in.

    Args:
        sizes: Side in pixels of the anchors, one per level.
        patch_size: P, in pixels.
    """

    def __init__(self, sizes: Sequence[int], patch_size: int) -> None:
        super().__init__(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))
        self.strides = tuple(stride * patch_size for stride in STRIDES)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of every image, ``(A, 4)``, level by level as the maps are given."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [[*feature_map.shape[-2:]] for feature_map in feature_maps]
        anchors_A4 = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors_A4] * len(image_list.image_sizes)


def exact_pool(patch_size: int, output_size: int) -> MultiScaleRoIAlign:
    """Pooling of boxes as torchvision's, each from the level of its size, with the scales ``1 / stride``.

    Args:
        patch_size: P, in pixels.
        output_size: Bins a side.
    """
    canonical = CANONICAL_CELLS * patch_size
    pool = MultiScaleRoIAlign([*POOLED_LEVELS], output_size, SAMPLES_PER_BIN, canonical_scale=canonical)
    pool.scales = [1 / (stride * patch_size) for stride in STRIDES[: len(POOLED_LEVELS)]]
    pool.map_levels = LevelMapper(k_min=2, k_max=5, canonical_scale=canonical, canonical_level=4)
    return pool
