"""The backbone stays frozen in every precision."""

import pytest
import torch
from tiny_backbones import KINDS, image, tiny_backbone
from torch import nn

from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.backbone.models import build_model
from vitsplit.errors import ConfigError
from vitsplit.types import TapRequest

REQUEST = TapRequest(tokens=frozenset({0, 3}), maps=frozenset({1, 3}), raw_maps=frozenset({0}))


def tensors(taps):
    return [*taps.tokens.values(), *taps.maps.values(), *taps.raw_maps.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_backbone_has_no_gradient(kind):
    backbone = tiny_backbone(kind)
    assert not any(value.requires_grad for value in backbone.parameters())
    fraction_BCHW = torch.rand(1, 3, 64, 64, requires_grad=True)
    taps = backbone(fraction_BCHW, TapRequest(REQUEST.tokens, REQUEST.maps, REQUEST.raw_maps, pixels=True))
    assert not any(value.requires_grad for value in [*tensors(taps), taps.pixels_BCHW])
    # Nor tensors of inference mode, because heads differentiate functions of them.
    weight = torch.ones(48, requires_grad=True)
    (taps.tokens[3] * weight).sum().backward()
    torch.testing.assert_close(weight.grad, taps.tokens[3].sum((0, 1)))


def test_backbone_ignores_train_mode():
    dropping = {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "depth": 4, "embed_dim": 48, "num_heads": 3}
    info = BackboneInfo("x", "x", "", "", "", (0, 0, 0), (1, 1, 1))
    backbone = Backbone(build_model("dinov2-small", img_size=70, **dropping).train(), info)
    around = nn.Sequential(backbone, nn.Linear(2, 2))
    around.train()
    backbone.train(True)
    assert around[1].training
    assert not any(module.training for module in backbone.modules())
    first, second = (backbone(image(70, 70), REQUEST) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(tensors(first), tensors(second), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_the_residual_stream_in_float32(kind):
    exact = tiny_backbone(kind)(image(61, 90), REQUEST)
    backbone = tiny_backbone(kind).set_precision(torch.bfloat16)
    rounded = backbone(image(61, 90), REQUEST)
    assert backbone.blocks[0].attn.proj.weight.dtype == torch.bfloat16
    assert backbone.blocks[0].norm1.weight.dtype == torch.float32
    for depth in (0, 3):
        assert rounded.tokens[depth].dtype == torch.float32
    assert {value.dtype for value in [*rounded.maps.values(), *rounded.raw_maps.values()]} == {torch.bfloat16}
    for one, two in zip(tensors(exact), tensors(rounded), strict=True):
        # Rounding errors of 2^-9 add up like a random walk; 1 % detects a stage of lower precision.
        assert (one - two).norm() < 0.01 * one.norm()
    assert not torch.equal(exact.tokens[3], rounded.tokens[3])


def test_float32_ignores_an_outer_autocast():
    backbone = tiny_backbone("eva02-large")
    alone = backbone(image(64, 64), REQUEST)
    with torch.autocast("cpu", torch.bfloat16):
        inside = backbone(image(64, 64), REQUEST)
    assert all(torch.equal(one, two) for one, two in zip(tensors(alone), tensors(inside), strict=True))


def test_changing_the_precision_twice_is_rejected():
    backbone = tiny_backbone("mae-base").set_precision(torch.bfloat16)
    backbone.set_precision(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"torch\.bfloat16"):
        backbone.set_precision(torch.float32)


def test_pixel_statistics_move_with_the_device():
    backbone = tiny_backbone("sam-base").to("meta")
    taps = backbone(image(40, 60).to("meta"), REQUEST)
    assert {value.device.type for value in tensors(taps)} == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padding_outside_of_an_extent_is_exactly_zero_after_normalization(kind, dtype):
    """Equal to padding after normalization, as in mmseg, for any color of the padding."""
    backbone, pixels = tiny_backbone(kind), TapRequest(maps=frozenset({3}), pixels=True)
    image_BCHW = image(61, 90) if dtype == torch.uint8 else image(61, 90) / 255
    extents = [(40, 90), (61, 33)]
    taps = backbone(image_BCHW, pixels, torch.tensor(extents))
    padding = backbone.padding(61, 90)
    for index, (height, width) in enumerate(extents):
        picture_1CHW = backbone.normalize(image_BCHW[index : index + 1, :, :height, :width])
        around = (padding.left, 90 - width + padding.right, padding.top, 61 - height + padding.bottom)
        assert torch.equal(taps.pixels_BCHW[index], nn.functional.pad(picture_1CHW, around)[0])
    whole = backbone(image_BCHW, pixels, torch.tensor([[61, 90]] * 2))
    without = backbone(image_BCHW, pixels)
    assert torch.equal(whole.maps[3], without.maps[3]) and not torch.equal(taps.maps[3], without.maps[3])
