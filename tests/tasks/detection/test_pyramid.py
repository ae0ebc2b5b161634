import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitsplit.tasks.detection.pyramid import POOLED_LEVELS, STRIDES, Pyramid


@pytest.mark.parametrize(
    ("width", "up4", "up2", "fpn"),
    [
        (384, 1_181_952, 590_976, 2_754_560),
        (768, 4_723_200, 2_361_600, 3_147_776),
        (1024, 8_394_752, 4_197_376, 3_409_920),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameters_equal_the_release(width, up4, up2, fpn, norm):
    with torch.device("meta"):
        pyramid = Pyramid(width, 256, norm=norm)
    counts = [
        sum(p.numel() for p in part.parameters()) for part in (pyramid.up4, pyramid.up2, pyramid.norms, pyramid.fpn)
    ]
    assert counts == [up4, up2, 8 * width, fpn]


def test_even_grids_equal_the_release():
    torch.manual_seed(0)
    pyramid = Pyramid(64, 32).train()
    x = torch.randn(2, 64, 4, 6)

    def up(x, block):
        x = F.conv_transpose2d(x, block[0].weight, block[0].bias, stride=2)
        return F.gelu(F.group_norm(x, 32, block[1].weight, block[1].bias))

    maps = [up(up(x, pyramid.up4[:3]), pyramid.up4[3:]), up(x, pyramid.up2), x, F.max_pool2d(x, 2)]
    maps = [
        F.batch_norm(m, None, None, n.weight, n.bias, training=True) for m, n in zip(maps, pyramid.norms, strict=True)
    ]
    weights = dict(pyramid.fpn.named_parameters())
    inner = [
        F.conv2d(m, weights[f"inner_blocks.{i}.0.weight"], weights[f"inner_blocks.{i}.0.bias"])
        for i, m in enumerate(maps)
    ]
    for i in (2, 1, 0):
        inner[i] = inner[i] + inner[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = [
        F.conv2d(m, weights[f"layer_blocks.{i}.0.weight"], weights[f"layer_blocks.{i}.0.bias"], padding=1)
        for i, m in enumerate(inner)
    ]
    expected.append(expected[-1][:, :, ::2, ::2])
    out = pyramid(x)
    assert [*out] == [*POOLED_LEVELS, "pool"]
    assert [tuple(m.shape) for m in out.values()] == [(2, 32, int(4 / s), max(1, int(6 / s + 0.5))) for s in STRIDES]
    for found, wanted in zip(out.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (37, 37), (5, 8), (19, 3)], ids=str)
def test_odd_grids_are_aligned(size):
    """A map of row numbers, passed down from the coarsest level alone, says which rows each cell was made from."""
    pyramid = Pyramid(32, 1, learned=False).eval()
    pyramid.norms = nn.ModuleList(nn.Identity() for _ in POOLED_LEVELS)
    with torch.no_grad():
        for level, (inner, out) in enumerate(zip(pyramid.fpn.inner_blocks, pyramid.fpn.layer_blocks, strict=True)):
            inner[0].weight.zero_()
            inner[0].weight[0, 0] = float(level == 3)
            out[0].weight.zero_()
            out[0].weight[0, 0, 1, 1] = 1.0
        rows_hw = torch.arange(float(size[0]))[:, None].expand(size)
        columns_hw = torch.arange(float(size[1])).expand(size)
        maps = {axis: pyramid(each.expand(1, 32, *size)) for axis, each in enumerate((rows_hw, columns_hw))}
    for axis, levels in maps.items():
        for name, stride in zip(POOLED_LEVELS, STRIDES[:4], strict=True):
            line = levels[name][0, 0, :, 0] if axis == 0 else levels[name][0, 0, 0]
            cells = torch.arange(len(line)) * stride // 2  # the coarsest cell that holds the beginning of each cell
            assert len(line) == -(-size[axis] // stride)
            assert torch.equal(line, (2 * cells + 1).clamp(max=size[axis] - 1))


def test_the_probe_resizes_maps_and_trains_only_norms():
    torch.manual_seed(0)
    pyramid = Pyramid(64, 32, learned=False).train()
    assert sum(p.numel() for p in pyramid.parameters()) == 8 * 64 + 4 * (64 * 32 + 32) + 4 * (9 * 32 * 32 + 32)
    assert pyramid(torch.randn(1, 64, 3, 5))["1/4"].shape == (1, 32, 12, 20)


def test_group_norm_makes_images_independent_and_batch_norm_does_not():
    torch.manual_seed(0)
    fused_BDhw = torch.randn(2, 64, 4, 4)
    for norm, independent in (("group", True), ("batch", False)):
        pyramid = Pyramid(64, 32, norm=norm).train()
        together, alone = pyramid(fused_BDhw), pyramid(fused_BDhw[:1])
        assert torch.allclose(together["1"][:1], alone["1"], atol=1e-5) is independent
