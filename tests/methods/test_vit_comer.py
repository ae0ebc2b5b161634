import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import tiny_backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitsplit.backbone import open_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.errors import ConfigError
from vitsplit.methods.pyramid import PUBLISHED, PyramidSettings
from vitsplit.methods.pyramid_stem import Scales, as_tokens
from vitsplit.methods.trunk import Trunk
from vitsplit.methods.vit_comer import MultiReceptive, ViTCoMer
from vitsplit.nn.deformable_attention import Geometry

SETTINGS = PyramidSettings(num_heads=3, deform_ratio=1.0, drop_path=0.0, dim_ratio=1.0)
SIZES = ((8, 12), (4, 6), (2, 3))


def small_comer(kind="deit3_small_patch16_224", **overrides):
    torch.manual_seed(0)
    backbone = tiny_backbone(kind, **{"patch_size": 16, "img_size": 64, **overrides})
    return ViTCoMer(Trunk(backbone, trained=True), settings=SETTINGS, stem_channels=8)


def pixels(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


class Groups(nn.Module):
    """Replaces the output and returns the outputs of the groups of blocks."""

    def forward(self, finest_BDhw, scales, groups):
        return groups


class Sums(nn.Module):
    """A stand-in for attention that depends only on its inputs."""

    def forward(self, query, feature, geometry):
        assert len(geometry.center_QL2) == query.shape[1] == feature.shape[1]
        assert geometry.width_L.tolist() == [12, 6, 3]
        return query * 2 + feature.mean(1, keepdim=True)


def norm(tokens):
    return F.layer_norm(tokens, (48,), eps=1e-6)


def test_the_transformer_is_initially_unchanged():
    comer = small_comer("dinov2-small-reg")
    comer.output = Groups()
    trunk = comer.blocks.trunk
    x_BND = trunk.embed(pixels())[0][:, trunk.num_prefix_tokens :]
    expected = []
    for block in trunk.blocks:
        x_BND = block(x_BND)
        expected.append(x_BND.mT.unflatten(2, (4, 6)))
    assert all(torch.equal(a, b) for a, b in zip(comer(pixels()), expected, strict=True))
    for interaction in comer.interactions:
        nn.init.constant_(interaction.to_patches.gamma, 0.5)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(comer(pixels()), expected, strict=True))


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (16, 32), (80, 64)], ids=str)
def test_maps_have_strides_4_to_32(size):
    comer = small_comer().eval()
    height, width = size
    expected = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(map_BDhw.shape) for map_BDhw in comer(pixels(*size))] == [(2, 48, *each) for each in expected]
    assert comer.width == 48


@pytest.mark.parametrize("kind", ["dinov2-small", "dinov3-small", "sam-base"])
def test_trainable_parameters_have_gradients_by_the_third_step(kind):
    # The first step opens gamma, the second the offsets, which start without regard to the query, the third its norm.
    comer = small_comer(kind).train()
    optimizer = torch.optim.SGD([p for p in comer.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum((map_BDhw * torch.randn_like(map_BDhw)).sum() for map_BDhw in comer(pixels())).backward()
        optimizer.step()
    assert not {n for n, p in comer.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())}


def test_the_multi_receptive_network_equals_the_reference():
    torch.manual_seed(0)
    part = MultiReceptive(16, 1.5).train()
    maps = [torch.randn(2, 16, *size) for size in SIZES]
    expected = []
    for map_BDhw, near, far in zip(maps, part.near, part.far, strict=True):
        hidden = F.conv2d(map_BDhw, part.expand.weight[:, :, None, None], part.expand.bias)
        three = F.conv2d(hidden[:, :12], near.weight, near.bias, padding=1, groups=12)
        five = F.conv2d(hidden[:, 12:], far.weight, far.bias, padding=2, groups=12)
        hidden = F.gelu(F.gelu(F.batch_norm(torch.cat([three, five], 1), None, None, training=True)))
        expected.append(F.conv2d(hidden, part.reduce.weight[:, :, None, None], part.reduce.bias))
    found = part(Scales(as_tokens(maps), SIZES))
    torch.testing.assert_close(found.tokens_BSD, as_tokens(expected), rtol=1e-4, atol=1e-5)
    assert (part.near[0].kernel_size, part.far[0].kernel_size) == ((3, 3), (5, 5))


def test_an_interaction_equals_the_reference():
    torch.manual_seed(3)
    interaction = small_comer().interactions[3].eval()
    part = interaction.to_patches
    nn.init.normal_(part.gamma)
    part.attention = Sums()
    for step in interaction.to_scales:
        step.extractor.attention = Sums()
    scales = Scales(torch.randn(2, 8 * 12 + 24 + 6, 48), SIZES)
    x = torch.randn(2, 24, 48)

    # To the patches: attention within the scales, with the patches as the middle one, on the grid of the patches.
    c = interaction.receptive(scales).tokens_BSD.clone()
    c[:, 96:120] += x
    found = 2 * norm(c) + norm(c).mean(1, keepdim=True)
    found = found + part.ffn(Scales(norm(found), SIZES))
    fine, middle, coarse = Scales(found, SIZES).maps()
    together = F.avg_pool2d(fine, 2) + middle + F.interpolate(coarse, scale_factor=2, mode="bilinear")
    expected_x = (x + part.gamma * together.flatten(2).mT) * 3
    # To the scales, from the scales that include the patches.
    for index, step in enumerate(interaction.to_scales):
        c = c.clone()
        c[:, 96:120] += expected_x
        if index:
            c = c + step.first_ffn(Scales(norm(c), SIZES))
        c = norm(c)
        c = c + 2 * norm(c) + norm(c).mean(1, keepdim=True)
        c = c + step.extractor.ffn(Scales(norm(c), SIZES))
    geometry = Geometry.between(SIZES, SIZES, torch.device("cpu"))
    found_x, found_scales = interaction(x, scales, geometry, lambda x: x * 3)
    torch.testing.assert_close(found_x, expected_x)
    torch.testing.assert_close(found_scales.tokens_BSD, c, rtol=1e-4, atol=1e-5)


def test_only_the_last_interaction_has_extra_extractors():
    comer = small_comer()
    assert [len(interaction.to_scales) for interaction in comer.interactions] == [1, 1, 1, 5]
    last = comer.interactions[3].to_scales
    assert [step.first_ffn is None for step in last] == [True, False, False, False, False]


# Millions that are added to the transformer; and Table 14's totals with DINOv2, less UperNet and the auxiliary head.
NEW = {"small": 9.61, "base": 24.79, "large": 42.86}
WITH_DINOV2 = {
    "small": 61.84 - 29.187 - 0.924,
    "base": 145.65 - 32.333 - 1.809,
    "large": 384.24 - 34.430 - 2.398,
}


@pytest.mark.parametrize("size", NEW)
def test_parameter_counts_are_as_published(size):
    backbone = open_backbone(BackboneConfig(backbone=f"dinov2-{size}", patch_size=16), only_shapes=True)
    with torch.device("meta"):
        comer = ViTCoMer(Trunk(backbone, trained=True))
    new = [p for part in (comer.stem, comer.interactions, comer.output) for p in part.parameters()]
    assert sum(p.numel() for p in new) / 1e6 == pytest.approx(NEW[size], abs=6e-3)
    trained = sum(p.numel() for p in comer.parameters() if p.requires_grad) / 1e6
    assert trained == pytest.approx(WITH_DINOV2[size], abs=0.007)


# 10^9 multiply-adds of the transformer, the stem and the interactions at 512 pixels, estimated from the authors' code.
@pytest.mark.parametrize(("size", "gmacs"), [("small", 31.7 + 6.4 + 44.4), ("base", 106.9 + 7.2 + 121.8)])
def test_multiply_adds(size, gmacs):
    backbone = open_backbone(BackboneConfig(backbone=f"dinov2-{size}", patch_size=16), only_shapes=True)
    with torch.device("meta"):
        comer = ViTCoMer(Trunk(backbone, trained=True)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        comer(torch.empty(1, 3, 512, 512, device="meta"))
    assert counted.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.02)


def test_bfloat16_forward():
    comer = small_comer().train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = comer(pixels())
    sum(map_BDhw.float().square().mean() for map_BDhw in maps).backward()
    assert all(p.grad.isfinite().all() for p in comer.parameters() if p.requires_grad)


def test_an_odd_number_of_hidden_channels_is_rejected():
    with pytest.raises(ConfigError, match=r"3 hidden channels \(width 48, ratio 0\.07\)"):
        MultiReceptive(48, 0.07)


def test_published_ratios():
    assert {width: PUBLISHED[width].dim_ratio for width in (384, 768, 1024)} == {384: 1.5, 768: 1.0, 1024: 1.0}
