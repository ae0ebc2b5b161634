"""Position embeddings by weight matrices; the oracles are timm's and DINOv2's interpolation of the table."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.pos_embed import resample_abs_pos_embed

from vitsplit.exporting.positions import release_positions, resized_positions

TABLE = torch.randn(1, 37 * 30, 8, generator=torch.Generator().manual_seed(0))
GRIDS = [(37, 30), (36, 31), (18, 24), (5, 7), (74, 61), (1, 1), (2, 90)]


@pytest.mark.parametrize("grid", GRIDS)
def test_antialiased_bicubic_is_that_of_timm(grid):
    expected = resample_abs_pos_embed(TABLE, new_size=[*grid], old_size=[37, 30], num_prefix_tokens=0)
    assert torch.allclose(resized_positions(TABLE, (37, 30), grid), expected, rtol=0, atol=1.5e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_release_positions_are_those_of_dinov2(grid):
    expected = TABLE
    if grid != (37, 30):  # the release leaves the training grid as it is, without its offset of 0.1
        scale = ((grid[0] + 0.1) / 37, (grid[1] + 0.1) / 30)
        map_1Djk = TABLE.unflatten(1, (37, 30)).permute(0, 3, 1, 2)
        expected = F.interpolate(map_1Djk, scale_factor=scale, mode="bicubic").flatten(2).mT
    assert torch.allclose(release_positions(TABLE, (37, 30), grid), expected, rtol=0, atol=5e-5)
