"""Outputs of one pass against timm's forward passes."""

import copy

import numpy as np
import pytest
import torch
from tiny_backbones import KINDS, MEAN, STD, image, tiny_backbone
from torch import nn

from vitsplit.errors import ConfigError
from vitsplit.types import Padding, TapRequest

ALL = TapRequest(tokens=frozenset(range(5)), maps=frozenset(range(4)), raw_maps=frozenset(range(4)), pixels=True)
each_kind = pytest.mark.parametrize("kind", KINDS)


def padded_by_hand(image_BCHW, patch):
    """Normalized in numpy, with centered zeros: the oracle of everything that the backbone does to pixels."""
    mean, std = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    pixels = (image_BCHW.numpy().astype(np.float32) / 255 - mean) / std
    pads = []
    for size in pixels.shape[2:]:
        extra = int(np.ceil(size / patch)) * patch - size
        pads.append((extra // 2, extra - extra // 2))
    return torch.from_numpy(np.pad(pixels, ((0, 0), (0, 0), *pads)))


@each_kind
@pytest.mark.parametrize("size", [(70, 70), (64, 64), (100, 61), (33, 150)])
def test_maps_equal_timm_intermediates(kind, size):
    backbone = tiny_backbone(kind)
    taps = backbone(image(*size), ALL)
    pixels = padded_by_hand(image(*size), backbone.patch_size)
    torch.testing.assert_close(taps.pixels_BCHW, pixels)
    with torch.no_grad():
        want = backbone.model.forward_intermediates(pixels, indices=list(range(4)), intermediates_only=True)
    for index in range(4):
        torch.testing.assert_close(taps.raw_maps[index], want[index], rtol=1e-4, atol=1e-4)
        assert taps.raw_maps[index].shape[-2:] == taps.grid == tuple(-(-side // backbone.patch_size) for side in size)


@each_kind
def test_normed_last_tokens_equal_timm_features(kind):
    backbone = tiny_backbone(kind)
    taps = backbone(image(75, 90), ALL)
    pixels = padded_by_hand(image(75, 90), backbone.patch_size)
    model = backbone.model
    with torch.no_grad():
        want = model.forward_features(pixels)
        if kind == "sam-base":  # without its neck: (B, D, h, w) and no norm
            want = want.flatten(2).mT
        elif kind in ("eva02-large", "vit_base_patch16_gap_224"):  # with pooling, the norm comes after it
            assert isinstance(model.norm, nn.Identity)
            want = torch.nn.functional.layer_norm(want, (48,), model.fc_norm.weight, model.fc_norm.bias, 1e-6)
    torch.testing.assert_close(backbone.final_norm(taps.tokens[4]), want, rtol=1e-4, atol=1e-4)
    want_map = want[:, taps.num_prefix_tokens :].mT.unflatten(2, taps.grid)
    torch.testing.assert_close(taps.maps[3], want_map, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        normed = backbone.final_norm(taps.raw_maps[1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(taps.maps[1], normed)


@pytest.mark.parametrize(("kind", "prefix"), [("dinov2-small", 1), ("dinov2-small-reg", 5), ("siglip-base", 0)])
def test_prefix_tokens(kind, prefix):
    backbone = tiny_backbone(kind)
    taps = backbone(image(28, 42), TapRequest(tokens=frozenset({0})))
    assert taps.num_prefix_tokens == backbone.num_prefix_tokens == prefix
    assert taps.tokens[0].shape == (2, prefix + taps.grid[0] * taps.grid[1], 48)


@each_kind
@pytest.mark.parametrize("num_tuned_layers", [1, 2, 3, 4])
def test_copies_of_the_last_blocks_give_exactly_the_frozen_output(kind, num_tuned_layers):
    backbone = tiny_backbone(kind)
    start = backbone.num_layers - num_tuned_layers
    taps = backbone(image(61, 100), TapRequest(tokens=frozenset({start, backbone.num_layers})))
    x_BTD = taps.tokens[start]
    for block in copy.deepcopy(backbone.blocks[start:]):
        x_BTD = backbone.family.run_block(block, x_BTD, taps.grid, taps.rope)
    assert torch.equal(x_BTD, taps.tokens[backbone.num_layers])


class Counting(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@each_kind
def test_blocks_run_once_up_to_the_highest_requested_layer(kind):
    backbone = tiny_backbone(kind)
    for index, block in enumerate(backbone.blocks):
        backbone.model.blocks[index] = Counting(block)
    backbone.model.patch_embed.proj = Counting(backbone.model.patch_embed.proj)
    calls = lambda: [block.calls for block in backbone.blocks]
    backbone(image(64, 64), TapRequest(pixels=True))
    assert (calls(), backbone.model.patch_embed.proj.calls) == ([0, 0, 0, 0], 0)
    backbone(image(64, 64), TapRequest(tokens=frozenset({0})))
    assert calls() == [0, 0, 0, 0]
    backbone(image(64, 64), TapRequest(tokens=frozenset({1}), maps=frozenset({0, 2}), raw_maps=frozenset({1})))
    assert calls() == [1, 1, 1, 0]
    backbone(image(64, 64), ALL)
    assert calls() == [2, 2, 2, 1]
    assert backbone.model.patch_embed.proj.calls == 3


def test_a_shared_pass_equals_separate_passes():
    backbone = tiny_backbone("dinov3-small")
    first = TapRequest(tokens=frozenset({2}), maps=frozenset({1, 3}))
    second = TapRequest(tokens=frozenset({3}), raw_maps=frozenset({1}), pixels=True)
    both = backbone(image(50, 70), first | second)
    assert (set(both.tokens), set(both.maps), set(both.raw_maps)) == ({2, 3}, {1, 3}, {1})
    one, two = backbone(image(50, 70), first), backbone(image(50, 70), second)
    assert all(torch.equal(both.tokens[depth], (one if depth == 2 else two).tokens[depth]) for depth in (2, 3))
    assert all(torch.equal(both.maps[index], one.maps[index]) for index in (1, 3))
    assert torch.equal(both.raw_maps[1], two.raw_maps[1])
    assert one.pixels_BCHW is None
    assert torch.equal(both.pixels_BCHW, two.pixels_BCHW)


@pytest.mark.parametrize(
    ("size", "padding", "grid"),
    [  # the release's padding at patch 14, facts of the method: 512, 480 and NYU's two
        ((512, 512), Padding(3, 3, 3, 3), (37, 37)),
        ((480, 480), Padding(5, 5, 5, 5), (35, 35)),
        ((896, 896), Padding(), (64, 64)),
        ((416, 544), Padding(left=1, top=2, right=1, bottom=2), (30, 39)),
        ((480, 640), Padding(left=2, top=5, right=2, bottom=5), (35, 46)),
        ((13, 27), Padding(left=0, top=0, right=1, bottom=1), (1, 2)),
    ],
)
def test_padding_is_centered(size, padding, grid):
    backbone = tiny_backbone("dinov2-small")
    taps = backbone(image(*size, batch=1), TapRequest(pixels=True))
    assert (taps.padding, taps.grid, taps.image_size) == (padding, grid, size)
    inside = taps.pixels_BCHW[..., padding.top : padding.top + size[0], padding.left : padding.left + size[1]]
    assert torch.count_nonzero(taps.pixels_BCHW) == torch.count_nonzero(inside)
    torch.testing.assert_close(inside, padded_by_hand(image(*size, batch=1), 1))


def test_uint8_and_float_images_agree():
    backbone = tiny_backbone("mae-base")
    byte_BCHW = image(40, 40)
    request = TapRequest(pixels=True)
    torch.testing.assert_close(
        backbone(byte_BCHW, request).pixels_BCHW, backbone(byte_BCHW.double() / 255, request).pixels_BCHW
    )


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.int32)]
)
def test_invalid_images_are_rejected(wrong):
    with pytest.raises(ConfigError, match=r"RGB images \(B, 3, H, W\)"):
        tiny_backbone("mae-base")(wrong, TapRequest(pixels=True))


@pytest.mark.parametrize("request_", [TapRequest(tokens=frozenset({5})), TapRequest(maps=frozenset({4}))])
def test_a_missing_block_is_rejected(request_):
    with pytest.raises(ConfigError, match=r"4 blocks.* 5"):
        tiny_backbone("mae-base")(image(32, 32), request_)
