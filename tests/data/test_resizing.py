"""Resizing without PyTorch against PyTorch's and torchvision's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.resizing import resize_image, resize_map

RNG = np.random.default_rng(0)
SIZES = [((480, 640), (252, 336)), ((100, 130), (224, 291)), ((37, 53), (37, 20)), ((5, 7), (2, 1)), ((1, 1), (9, 4))]


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_images_are_torchvisions_but_for_rounding(old, new):
    image_HWC = RNG.integers(0, 256, (*old, 3), dtype=np.uint8)
    image_HWC[: old[0] // 2, : old[1] // 2] = 255  # an edge, beside noise
    mine_HWC = resize_image(image_HWC, new)
    assert mine_HWC.dtype == np.uint8
    image_BCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]
    exact_HWC = TF.resize(image_BCHW.double(), list(new), antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(mine_HWC - exact_HWC).max() <= 1 + 1e-6
    # PyTorch 2.8 is wrong by up to 90 where the result is one pixel wide, in one of the two layouts.
    for layout_BCHW in (image_BCHW, image_BCHW.contiguous()) if new[1] > 1 else ():
        expected_HWC = TF.resize(layout_BCHW, list(new), antialias=True)[0].permute(1, 2, 0).numpy()
        difference_HWC = np.abs(mine_HWC.astype(int) - expected_HWC)
        assert difference_HWC.max() <= 2 and (difference_HWC > 1).mean() < 1e-4


@pytest.mark.parametrize(("old", "new"), [*SIZES, ((6, 8), (6, 8)), ((252, 336), (480, 640))], ids=str)
def test_maps_are_those_of_interpolate(old, new):
    map_Chw = RNG.normal(0, 5, (3, *old)).astype(np.float32)
    expected_CHW = F.interpolate(torch.from_numpy(map_Chw).double()[None], new, mode="bilinear", align_corners=False)[
        0
    ].numpy()
    mine_CHW = resize_map(map_Chw, new)
    assert mine_CHW.dtype == np.float32
    np.testing.assert_allclose(mine_CHW, expected_CHW, rtol=0, atol=5e-6)
    for rows in (range(1), range(new[0] // 3, new[0])):
        assert np.array_equal(resize_map(map_Chw, new, rows), mine_CHW[:, rows.start : rows.stop])
