"""Connectors against a reimplementation of the authors' release, and against timm."""

import json

import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import image, tiny_backbone

from vitsplit.cli.main import main
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.model import Head
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.connectors import PenultimateLayer, ReleaseConnector, build_head, build_projection, pool

WIDTH = 20
SPLIT = SplitConfig(num_tuned_layers=1, num_prior_layers=1, selection="last")
CLIP, VICUNA = 1024, 4096
BLOCK = 12 * CLIP * CLIP + 13 * CLIP  # qkv, projection and the two layers of width 4096, with biases and norms
MLP2X = CLIP * VICUNA + VICUNA + VICUNA * VICUNA + VICUNA


def information(capsys, *flags):
    assert main(["info", "llava15-7b-align-release", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)["parameters"]


def test_parameters_of_the_release(capsys):
    counted = information(capsys)
    prior = CLIP * CLIP + CLIP + 9 * CLIP * CLIP + CLIP
    fusion = 2 * CLIP * VICUNA + VICUNA + 9 * VICUNA * VICUNA + VICUNA
    assert (BLOCK, prior, fusion) == (12_596_224, 10_487_808, 159_391_744)
    assert counted["trainable"] == BLOCK + prior + fusion == 182_475_776


def test_parameters_of_llava_and_linear_connectors(capsys):
    assert information(capsys, "--connector", "mlp2x")["trainable"] == MLP2X == 20_979_712
    assert information(capsys, "--connector", "linear")["trainable"] == CLIP * VICUNA + VICUNA


def restated(connector, backbone, image_BCHW):
    """Facts of the release, in plain torch: what enters the block is hidden state -3, the prior is hidden state -2."""
    model = backbone.model
    with torch.no_grad():
        x_BTD = model.norm_pre(model._pos_embed(model.patch_embed(backbone.normalize(image_BCHW))))
        hidden = [x_BTD]
        for block in model.blocks:
            hidden.append(block(hidden[-1]))
    grid = (image_BCHW.shape[2] // backbone.patch_size, image_BCHW.shape[3] // backbone.patch_size)

    def as_map(x_BND):
        batch, _, width = x_BND.shape
        return x_BND.transpose(1, 2).reshape(batch, width, *grid)

    def block_of_convolutions(part, map_BDhw):
        state = dict(part.named_parameters())
        map_BDhw = F.gelu(F.conv2d(map_BDhw, state["reduce.weight"], state["reduce.bias"]))
        return F.gelu(F.conv2d(map_BDhw, state["mix.weight"], state["mix.bias"], padding=1))

    task = as_map(connector.block(hidden[-3][:, backbone.num_prefix_tokens :]))
    prior = block_of_convolutions(connector.prior, as_map(hidden[-2][:, backbone.num_prefix_tokens :]))
    return block_of_convolutions(connector.fusion, torch.cat([prior, task], 1))


@pytest.mark.parametrize("kind", ["clip-large-336", "dinov2-small-reg", "siglip-base"])
def test_the_release_connector_equals_a_reference(kind):
    backbone = tiny_backbone(kind)
    torch.manual_seed(0)
    connector = build_head(VqaConfig(connector="vitsplit-release", language_width=WIDTH), backbone)
    assert isinstance(connector, ReleaseConnector)
    for name, copied in connector.block.named_parameters():
        assert torch.equal(copied, backbone.blocks[-2].get_parameter(name)) and copied.requires_grad
    with torch.no_grad():
        for parameter in connector.block.parameters():  # as after training: it differs from the frozen block
            parameter.add_(torch.randn_like(parameter) * 0.05)
    pixels_BCHW = image(4 * backbone.patch_size, 5 * backbone.patch_size)
    map_BDhw = connector(backbone(pixels_BCHW, connector.request(train=False)))
    assert map_BDhw.shape == (2, WIDTH, 4, 5)
    assert torch.allclose(map_BDhw, restated(connector, backbone, pixels_BCHW), atol=1e-5)
    (pretrained,) = connector.pretrained_parameters().values()
    assert {id(p) for p in pretrained} == {id(p) for p in connector.block.parameters()}
    assert all(p.requires_grad for p in connector.parameters())
    assert isinstance(build_projection("vitsplit-release", WIDTH, WIDTH), torch.nn.Identity)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_a_state_without_biases_loads_as_zeros():
    backbone = tiny_backbone("clip-large-336")
    head = build_head(VqaConfig(connector="vitsplit-release", language_width=WIDTH), backbone)
    model = Head(head, torch.nn.Identity())
    pixels_BCHW = image(4 * backbone.patch_size, 5 * backbone.patch_size)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            parameter.zero_() if name.endswith("mix.bias") else parameter.add_(torch.randn_like(parameter) * 0.05)
        want = head(backbone(pixels_BCHW, head.request(train=False)))
    former = {name: t.clone() for name, t in model.trainable_state().items() if not name.endswith("mix.bias")}
    assert len(former) == len(model.trainable_state()) - 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    model.load_trainable_state(former)
    assert torch.equal(head(backbone(pixels_BCHW, head.request(train=False))), want)
    with pytest.raises(KeyError, match=r"missing.*head\.prior\.reduce\.bias"):
        model.load_trainable_state({name: t for name, t in former.items() if name != "head.prior.reduce.bias"})


@pytest.mark.parametrize("kind", ["dinov3-small", "eva02-large"])
def test_the_release_connector_rejects_rotary_positions(kind):
    with pytest.raises(ConfigError, match=r"vitsplit-release.*Use --connector vitsplit"):
        build_head(VqaConfig(connector="vitsplit-release"), tiny_backbone(kind))


@pytest.mark.parametrize("connector", ["mlp2x", "linear"])
@pytest.mark.parametrize("kind", ["clip-large-336", "dinov2-small-reg", "siglip-base", "dinov3-small"])
def test_the_penultimate_layer_equals_timm(connector, kind):
    backbone = tiny_backbone(kind)
    head = build_head(VqaConfig(connector=connector), backbone)
    assert isinstance(head, PenultimateLayer) and not list(head.parameters())
    pixels_BCHW = image(4 * backbone.patch_size, 5 * backbone.patch_size)
    with torch.no_grad():
        features = backbone.model.forward_intermediates(
            backbone.normalize(pixels_BCHW), indices=[backbone.num_layers - 2], norm=False, intermediates_only=True
        )
    map_BDhw = head(backbone(pixels_BCHW, head.request(train=False)))
    assert torch.allclose(map_BDhw, features[0], atol=1e-5)


def test_the_llava_projection_is_a_two_layer_mlp():
    torch.manual_seed(0)
    projection = build_projection("mlp2x", 6, WIDTH)
    map_BDhw = torch.randn(2, 6, 3, 4)
    first, second = (projection.get_parameter(f"{n}.weight") for n in (0, 2))
    first_bias, second_bias = (projection.get_parameter(f"{n}.bias") for n in (0, 2))
    tokens_BNW = projection(pool(map_BDhw, None))
    for row in range(3):
        for column in range(4):
            expected_BW = F.gelu(map_BDhw[:, :, row, column] @ first.T + first_bias) @ second.T + second_bias
            assert torch.allclose(tokens_BNW[:, 4 * row + column], expected_BW, atol=1e-6)
