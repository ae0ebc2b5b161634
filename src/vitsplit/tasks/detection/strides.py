"""Anchors and RoI pooling with the exact strides of the pyramid.

torchvision infers strides from the sizes of image and maps, with integer division and rounding to powers of two. At
patch 14 the strides are 3.5, 7, 14, 28 and 56 pixels, for which both would be silently wrong.

Shapes: B batch, N boxes, A anchors of an image, C channels, h w grid, b bins per side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops._utils import convert_boxes_to_roi_format
from torchvision.ops.poolers import LevelMapper

from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES

ASPECT_RATIOS = (0.5, 1.0, 2.0)
"""Ratio of height to width of the anchors."""
CANONICAL_CELLS = 14
"""Objects of this size in patches are pooled from the map at the patch grid: 224 pixels at stride 16 (FPN, Eq. 1)."""
SAMPLES_PER_BIN = 2
"""Sampling points per side of a bin, as in torchvision."""
AS_MANY_AS_CELLS = 0
"""As in mmdet: as many sampling points as a bin has cells."""


class ExactAnchors(AnchorGenerator):
    """torchvision's anchors at the points ``(i * stride, j * stride)``, always in float32.

    Args:
        sizes: Anchor size in pixels, one per level.
        patch_size: P, in pixels.
        rounded: Round corners to integers as torchvision does; mmdet does not.
    """

    def __init__(self, sizes: Sequence[int], patch_size: int, *, rounded: bool = True) -> None:
        super().__init__(tuple((size,) for size in sizes), (ASPECT_RATIOS,) * len(sizes))
        if not rounded:
            self.cell_anchors = [_around_zero(size) for size in sizes]
        self.strides = tuple(stride * patch_size for stride in STRIDES)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors of every image, ``(A, 4)``, in the order of the maps."""
        self.set_cell_anchors(torch.float32, feature_maps[0].device)
        grids = [[*feature_map.shape[-2:]] for feature_map in feature_maps]
        anchors_A4 = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))
        return [anchors_A4] * len(image_list.image_sizes)


def _around_zero(size: int) -> Tensor:
    """Anchors of equal area centered at (0, 0), (3, 4), with aspect ratios ``ASPECT_RATIOS``."""
    height_3 = size * torch.tensor(ASPECT_RATIOS).sqrt()
    width_3 = size**2 / height_3
    return torch.stack([-width_3, -height_3, width_3, height_3], 1) / 2


class AlignedPool(MultiScaleRoIAlign):
    """torchvision's pooling with ``aligned=True`` of RoIAlign: values are at the centers of cells."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """As in torchvision, (N, C, bins, bins); ``scales`` and ``map_levels`` are set by ``exact_pool``."""
        maps = [x[name] for name in self.featmap_names]
        levels_N, rois_N5 = self.map_levels(boxes), convert_boxes_to_roi_format(boxes)
        pooled_NCbb = maps[0].new_zeros(len(rois_N5), maps[0].shape[1], *self.output_size)
        for level, (map_BChw, scale) in enumerate(zip(maps, self.scales, strict=True)):
            chosen = (levels_N == level).nonzero()[:, 0]
            pooled_NCbb[chosen] = roi_align(
                map_BChw, rois_N5[chosen], self.output_size, scale, self.sampling_ratio, aligned=True
            )
        return pooled_NCbb


def exact_pool(patch_size: int, output_size: int, *, aligned: bool = False) -> MultiScaleRoIAlign:
    """RoI pooling as in torchvision, from the level of each box's size, with exact scales ``1 / stride``.

    Args:
        patch_size: P, in pixels.
        output_size: Bins per side.
        aligned: As in mmdet: ``AlignedPool`` with as many samples as cells (torchvision: values at corners of cells,
            two by two samples).
    """
    canonical = CANONICAL_CELLS * patch_size
    kind, samples = (AlignedPool, AS_MANY_AS_CELLS) if aligned else (MultiScaleRoIAlign, SAMPLES_PER_BIN)
    pool = kind([*POOLED_LEVELS], output_size, samples, canonical_scale=canonical)
    pool.scales = [1 / (stride * patch_size) for stride in STRIDES[: len(POOLED_LEVELS)]]
    pool.map_levels = LevelMapper(k_min=2, k_max=5, canonical_scale=canonical, canonical_level=4)
    return pool
