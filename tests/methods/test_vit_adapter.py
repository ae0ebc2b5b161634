import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from tiny_backbones import KINDS, tiny_backbone
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitsplit.backbone import open_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.errors import ConfigError
from vitsplit.methods import adapter_head
from vitsplit.methods.adapter_head import AdapterHead
from vitsplit.methods.pyramid import PUBLISHED, ConvFFN, PyramidOutput, PyramidSettings
from vitsplit.methods.pyramid_stem import PyramidStem, Scales, as_tokens
from vitsplit.methods.trunk import Trunk
from vitsplit.methods.vit_adapter import Exchange, ViTAdapter
from vitsplit.model import Head

TINY = PyramidSettings(num_heads=3, deform_ratio=1.0, drop_path=0.0, dim_ratio=1.0)
PATCH_16 = {"patch_size": 16, "img_size": 64}


def small_trunk(kind="deit3_small_patch16_224", **overrides):
    return Trunk(tiny_backbone(kind, **{**PATCH_16, **overrides}), trained=True)


def small_adapter(kind="deit3_small_patch16_224", settings=TINY):
    torch.manual_seed(0)
    return ViTAdapter(small_trunk(kind), settings=settings, stem_channels=8)


def pixels(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


class Groups(nn.Module):
    """Replaces the output and returns the outputs of the groups of blocks."""

    def forward(self, finest_BDhw, scales, groups):
        return groups


@pytest.mark.parametrize("kind", ["deit3_small_patch16_224", "dinov2-small-reg", "sam-base"])
def test_the_transformer_is_initially_unchanged(kind):
    adapter = small_adapter(kind)
    adapter.output = Groups()
    trunk, image_BCHW = adapter.blocks.trunk, pixels()
    x_BTD, rope = trunk.embed(image_BCHW)
    x_BTD = x_BTD[:, trunk.num_prefix_tokens :]
    expected = []
    for block in trunk.blocks:
        x_BTD = trunk.family.run_block(block, x_BTD, (4, 6), rope)
        expected.append(x_BTD.mT.unflatten(2, (4, 6)))  # of four blocks each is a group
    found = adapter(image_BCHW)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for interaction in adapter.interactions:
        nn.init.constant_(interaction.injector.gamma, 0.5)
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(adapter(image_BCHW), expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "added"), [("mae-base", 2 * 4 * 48), ("dinov2-small", 0), ("deit3_small_patch16_224", 0)]
)
def test_blocks_without_a_layer_scale_get_a_trainable_one(kind, added, monkeypatch):
    monkeypatch.setattr(adapter_head, "published_settings", lambda width: TINY)
    backbone = tiny_backbone(kind, **PATCH_16)
    before = sum(p.numel() for p in backbone.blocks[0].parameters()) * len(backbone.blocks)
    head = AdapterHead(ViTAdapter, backbone, pyramid=True)
    blocks = head.adapter.blocks.trunk.blocks
    assert sum(p.numel() for block in blocks for p in block.parameters() if p.requires_grad) == before + added
    if added:
        assert all(torch.equal(scale.gamma, torch.ones(48)) for block in blocks for scale in (block.ls1, block.ls2))
        assert not any(isinstance(each, LayerScale) for each in backbone.modules())  # the frozen one is not touched
    # An earlier bundle has no scales: equal to scales of one.
    model = Head(head, nn.Identity())
    former = {name: t.clone() for name, t in model.trainable_state().items() if added == 0 or ".ls" not in name}
    assert len(model.trainable_state()) - len(former) == (8 if added else 0)
    with torch.no_grad():
        for block in blocks:
            block.ls1.gamma.fill_(3.0)
    model.load_trainable_state(former)
    assert added == 0 or all(torch.equal(block.ls1.gamma, torch.ones(48)) for block in blocks)


def test_groups_of_blocks():
    torch.manual_seed(0)
    adapter = ViTAdapter(small_trunk(depth=8), settings=TINY, stem_channels=8)
    adapter.output = Groups()
    x_BND, _ = adapter.blocks.embed(pixels())
    for index, block in enumerate(adapter.blocks.trunk.blocks):
        x_BND = block(x_BND)
        if index % 2:
            assert torch.equal(adapter(pixels())[index // 2], x_BND.mT.unflatten(2, (4, 6)))


def test_rotary_positions_without_prefix_tokens():
    backbone = tiny_backbone("dinov3-small", img_size=64)
    adapter = ViTAdapter(Trunk(backbone, trained=True), settings=TINY, stem_channels=8)
    adapter.output = Groups()
    bare = tiny_backbone("dinov3-small", img_size=64, class_token=False, num_reg_tokens=0)
    assert bare.num_prefix_tokens == 0 and backbone.num_prefix_tokens == 5
    state = {name: value for name, value in backbone.model.state_dict().items() if "token" not in name}
    bare.model.load_state_dict(state)
    x_BND, rope = bare.family.embed(bare.model, pixels())
    for block, found in zip(bare.blocks, adapter(pixels()), strict=True):
        x_BND = bare.family.run_block(block, x_BND, (4, 6), rope)
        torch.testing.assert_close(found, x_BND.mT.unflatten(2, (4, 6)))
    assert backbone.blocks[0].attn.num_prefix_tokens == 5  # the frozen backbone is not touched


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (16, 32), (80, 64)], ids=str)
def test_maps_have_strides_4_to_32(size):
    adapter = small_adapter().eval()
    maps = adapter(pixels(*size))
    height, width = size
    expected = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(map_BDhw.shape) for map_BDhw in maps] == [(2, 48, *each) for each in expected]
    assert adapter.width == 48


@pytest.mark.parametrize("kind", KINDS)
def test_trainable_parameters_have_gradients_by_the_third_step(kind):
    # The first step opens gamma, the second the offsets, which start without regard to the query, the third its norm.
    adapter = small_adapter(kind).train()
    optimizer = torch.optim.SGD([p for p in adapter.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        sum((map_BDhw * torch.randn_like(map_BDhw)).sum() for map_BDhw in adapter(pixels())).backward()
        optimizer.step()
    without = {
        name for name, p in adapter.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())
    }
    assert not without
    assert all(p.grad is None for p in adapter.parameters() if not p.requires_grad)


def test_trainable_parameters_are_split_into_pretrained_and_new():
    adapter = small_adapter("dinov2-small-reg")
    pretrained = {id(p) for p in adapter.blocks.trunk.parameters() if p.requires_grad}
    assert pretrained == {id(p) for p in adapter.parameters() if p.requires_grad} - {
        id(p) for part in (adapter.stem, adapter.interactions, adapter.output) for p in part.parameters()
    }
    groups = adapter.blocks.trunk.pretrained_parameters().values()
    assert sorted(id(p) for group in groups for p in group) == sorted(pretrained)
    frozen = {name for name, p in adapter.named_parameters() if not p.requires_grad}
    assert {name.removeprefix("blocks.trunk.model.") for name in frozen} == {
        "cls_token",
        "reg_token",
        "norm.weight",
        "norm.bias",
    }


def test_stochastic_depth_increases_linearly():
    settings = dataclasses.replace(TINY, drop_path=0.3)
    adapter = small_adapter(settings=settings)
    rates = [block.drop_path1.drop_prob for block in adapter.blocks.trunk.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path2.drop_prob for block in adapter.blocks.trunk.blocks] == rates
    extractors = [[e.drop_path.drop_prob for e in interaction.extractors] for interaction in adapter.interactions]
    assert extractors == [[0.3], [0.3], [0.3], [0.3, 0.3, 0.3]]
    image_BCHW = pixels(batch=8)
    assert not torch.equal(adapter.train()(image_BCHW)[3], adapter(image_BCHW)[3])
    assert torch.equal(adapter.eval()(image_BCHW)[3], adapter(image_BCHW)[3])


def test_an_interaction_equals_the_reference():
    torch.manual_seed(3)
    interaction = small_adapter().interactions[3]
    nn.init.normal_(interaction.injector.gamma)
    scales = Scales(torch.randn(2, 8 * 12 + 24 + 6, 48), ((8, 12), (4, 6), (2, 3)))
    x = torch.randn(2, 24, 48)

    # A stand-in for attention that depends only on its queries, features and geometry.
    class Sums(nn.Module):
        def forward(self, query, feature, geometry):
            assert len(geometry.center_QL2) == query.shape[1]
            return query * 2 + feature.mean(1, keepdim=True)

    def norm(tokens):
        return F.layer_norm(tokens, (48,), eps=1e-6)

    interaction.injector.attention = Sums()
    for extractor in interaction.extractors:
        extractor.attention = Sums()
    c = scales.tokens_BSD
    gamma = interaction.injector.gamma
    expected_x = (x + gamma * (2 * norm(x) + norm(c).mean(1, keepdim=True))) * 3
    expected_c = c
    for extractor in interaction.extractors:
        expected_c = expected_c + 2 * norm(expected_c) + norm(expected_x).mean(1, keepdim=True)
        expected_c = expected_c + extractor.ffn(Scales(norm(expected_c), scales.sizes))
    exchange = Exchange.of((4, 6), scales.sizes, torch.device("cpu"))
    found_x, found = interaction(x, scales, exchange, lambda x: x * 3)
    torch.testing.assert_close(found_x, expected_x)
    torch.testing.assert_close(found.tokens_BSD, expected_c)
    assert found.sizes == scales.sizes
    assert exchange.to_patches.width_L.tolist() == [12, 6, 3] and exchange.to_scales.width_L.tolist() == [6]


def test_the_feed_forward_network_mixes_within_scales_only():
    torch.manual_seed(0)
    ffn = ConvFFN(16, 0.5)
    maps = [torch.randn(2, 16, *size) for size in ((4, 6), (3, 2), (1, 1))]
    expected = []
    for map_BDhw in maps:
        hidden = F.conv2d(map_BDhw, ffn.expand.weight[:, :, None, None], ffn.expand.bias)
        hidden = F.gelu(F.conv2d(hidden, ffn.mix.weight, ffn.mix.bias, padding=1, groups=8))
        expected.append(F.conv2d(hidden, ffn.reduce.weight[:, :, None, None], ffn.reduce.bias))
    found = ffn(Scales(as_tokens(maps), ((4, 6), (3, 2), (1, 1))))
    torch.testing.assert_close(found, as_tokens(expected), rtol=1e-4, atol=1e-5)


def test_scales_to_maps_and_back():
    maps = [torch.randn(2, 5, *size) for size in ((4, 6), (3, 2), (1, 1))]
    scales = Scales(as_tokens(maps), ((4, 6), (3, 2), (1, 1)))
    assert scales.tokens_BSD.shape == (2, 31, 5)
    assert torch.equal(scales.tokens_BSD[:, 24 + 2 * 2 + 1], maps[1][:, :, 2, 1])
    assert all(torch.equal(a, b) for a, b in zip(scales.maps(), maps, strict=True))


def test_the_output_adds_the_groups_from_fine_to_coarse():
    output = PyramidOutput(4).eval()
    nn.init.zeros_(output.enlarge.weight)
    nn.init.constant_(output.enlarge.bias, 0.25)
    sizes = ((8, 12), (4, 6), (2, 3))
    scales = Scales(as_tokens([torch.full((1, 4, *size), 10.0 * n) for n, size in enumerate(sizes, 1)]), sizes)
    groups = [torch.full((1, 4, 4, 6), float(n)) for n in (1, 2, 3, 4)]
    maps = output(torch.full((1, 4, 16, 24), 100.0), scales, groups)
    assert [tuple(map_BDhw.shape[2:]) for map_BDhw in maps] == [(16, 24), *sizes]
    scale = (1 + 1e-5) ** -0.5  # batch norm as it is at first
    for map_BDhw, value in zip(maps, (100 + 0.25 + 1, 10 + 2, 20 + 3, 30 + 4), strict=True):
        torch.testing.assert_close(map_BDhw, torch.full_like(map_BDhw, value * scale))
    torch.nn.init.constant_(output.enlarge.weight, 0.5)
    finest = output(torch.full((1, 4, 16, 24), 100.0), scales, groups)[0]
    torch.testing.assert_close(finest, torch.full_like(finest, (100 + 0.25 + 1 + 4 * 0.5 * 10) * scale))


def test_the_stem_adds_level_embeddings():
    stem = PyramidStem(4, channels=2).eval()
    for widen in stem.widen:
        nn.init.zeros_(widen.weight)
        nn.init.zeros_(widen.bias)
    finest, scales = stem(torch.randn(1, 3, 48, 32))
    assert finest.shape == (1, 4, 12, 8) and scales.sizes == ((6, 4), (3, 2), (2, 1))
    for level, map_BDhw in enumerate(scales.maps()):
        torch.testing.assert_close(map_BDhw, stem.level_3D[level].view(1, 4, 1, 1).expand_as(map_BDhw))


# Millions that were published or follow from them: stem, injector, extractor, all that is added.
PARTS = {
    "small": (1.307, 0.381, 0.401, 5.83),
    "base": (1.579, 0.927, 1.004, 13.68),
    "large": (1.761, 1.646, 1.781, 23.24),
}
# Table 14's totals with DINOv2, less UperNet and the auxiliary head.
WITH_DINOV2 = {
    "small": 58.07 - 29.187 - 0.924,
    "base": 134.54 - 32.333 - 1.809,
    "large": 364.61 - 34.430 - 2.398,
}


def shape_trunk(size):
    config = BackboneConfig(backbone=f"dinov2-{size}", patch_size=16)
    return Trunk(open_backbone(config, only_shapes=True), trained=True)


def millions(parameters):
    return sum(parameter.numel() for parameter in parameters) / 1e6


@pytest.mark.parametrize("size", PARTS)
def test_parameter_counts_are_as_published(size):
    with torch.device("meta"):
        adapter = ViTAdapter(shape_trunk(size))
    stem, injector, extractor, new = PARTS[size]
    first = adapter.interactions[0]
    # The authors' stem has the levels' embedding outside it.
    levels = adapter.stem.level_3D.numel() / 1e6
    assert millions(adapter.stem.parameters()) - levels == pytest.approx(stem, abs=5e-4)
    assert millions(first.injector.parameters()) == pytest.approx(injector, abs=6e-4)
    assert millions(first.extractors[0].parameters()) == pytest.approx(extractor, abs=6e-4)
    assert [len(interaction.extractors) for interaction in adapter.interactions] == [1, 1, 1, 3]
    parts = (adapter.stem, adapter.interactions, adapter.output)
    assert sum(millions(part.parameters()) for part in parts) == pytest.approx(new, abs=6e-3)
    trained = millions(p for p in adapter.parameters() if p.requires_grad)
    assert trained == pytest.approx(WITH_DINOV2[size], abs=0.007)


# 10^9 multiply-adds of the transformer, the stem and the interactions at 512 pixels, estimated from the authors' code.
@pytest.mark.parametrize(("size", "gmacs"), [("small", 31.7 + 6.4 + 15.8), ("base", 106.9 + 7.2 + 43.4)])
def test_multiply_adds(size, gmacs):
    with torch.device("meta"):
        adapter = ViTAdapter(shape_trunk(size)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        adapter(torch.empty(1, 3, 512, 512, device="meta"))
    assert counted.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.02)


def test_bfloat16_forward():
    adapter = small_adapter().train()
    reference = copy.deepcopy(adapter)(pixels())
    with torch.autocast("cpu", torch.bfloat16):
        maps = adapter(pixels())
    for found, expected in zip(maps, reference, strict=True):
        assert (found.float() - expected).norm() < 0.05 * expected.norm()
    sum(map_BDhw.float().square().mean() for map_BDhw in maps).backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("trunk", "expected"),
    [
        (
            {"kind": "dinov2-small", "patch_size": 14, "img_size": 70},
            "patches of 14.*--patch-size 16",
        ),
        ({"depth": 6}, "divisible by 4, not 6"),
    ],
)
def test_unsupported_transformers_are_rejected(trunk, expected):
    with pytest.raises(ConfigError, match=expected):
        ViTAdapter(small_trunk(**trunk), settings=TINY)


def test_a_width_without_published_settings_is_rejected():
    with pytest.raises(ConfigError, match=r"width 48.* 192, 384, 768, 1024"):
        ViTAdapter(small_trunk())


def test_published_settings():
    heads = {width: (s.num_heads, s.deform_ratio, s.drop_path) for width, s in PUBLISHED.items()}
    assert heads[384] == (6, 1.0, 0.2) and heads[768] == (12, 0.5, 0.3) and heads[1024] == (16, 0.5, 0.4)
