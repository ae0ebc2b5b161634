"""Position embeddings at other image sizes than in training, against the release's rule."""

import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import MEAN, STD, image, tiny_model

from vitsplit.backbone import checkpoint, load_backbone, meta_backbone, open_backbone
from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.backbone.config import BackboneConfig
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead

SPLIT = SplitConfig(num_tuned_layers=1, num_prior_layers=2, first_prior_layer=1)
SIZES = [(480, 480), (480, 640), (896, 896), (518, 518)]
NAME = "vit_tiny_patch16_224.augreg_in21k"


def wrapped(model, positions="timm"):
    return Backbone(model, BackboneInfo("tiny", "tiny", "none", "a test", "", MEAN, STD), positions)


def dinov2s(position_1TD, num_prefix, grid, *, with_registers):
    """``interpolate_pos_encoding`` of DINOv2's code, with the settings of its models."""
    if grid == (37, 37):
        return position_1TD
    patches_1Dhw = position_1TD[:, num_prefix:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    if with_registers:
        patches_1Dhw = F.interpolate(patches_1Dhw, size=grid, mode="bicubic", antialias=True)
    else:
        scale = tuple((side + 0.1) / 37 for side in grid)
        patches_1Dhw = F.interpolate(patches_1Dhw, scale_factor=scale, mode="bicubic", antialias=False)
    assert patches_1Dhw.shape[2:] == grid
    return torch.cat([position_1TD[:, :num_prefix], patches_1Dhw.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def as_stated(model, grid, *, num_prefix, with_registers):
    """The model with position embeddings of the grid instead of its own, so that none are resampled."""
    model = copy.deepcopy(model)
    positions = dinov2s(model.pos_embed.data, num_prefix, grid, with_registers=with_registers)
    model.pos_embed = torch.nn.Parameter(positions)
    model.patch_embed.grid_size = grid
    return wrapped(model)


@pytest.mark.parametrize("size", SIZES)
def test_the_fused_map_uses_the_positions_of_the_release(size):
    model = tiny_model("dinov2-small", img_size=518)
    backbone = wrapped(model, "release")
    torch.manual_seed(0)
    head = SplitHead(backbone, SPLIT).eval()
    grid = tuple(-(-side // 14) for side in size)
    oracle = as_stated(model, grid, num_prefix=1, with_registers=False)
    image_BCHW = image(*size, batch=1)
    with torch.no_grad():
        want, have, timms = (
            head(each(image_BCHW, head.request(train=False))) for each in (oracle, backbone, wrapped(model))
        )
    assert have.shape[2:] == grid
    assert ((have - want).norm() / want.norm()).item() < 1e-6
    difference = ((timms - want).norm() / want.norm()).item()
    assert difference < 1e-6 if size == (518, 518) else difference > 1e-3


@pytest.mark.parametrize("kind", ["siglip-base", "deit3_small_patch16_224"])
def test_models_with_positions_of_patches_only(kind):
    model = tiny_model(kind, img_size=64)
    backbone, image_BCHW = wrapped(model, "release"), image(96, 80)
    tokens_BTD, _ = backbone.family.embed(model, backbone.normalize(image_BCHW))
    positions_1Dhw = model.pos_embed.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    positions_1Dhw = F.interpolate(positions_1Dhw, scale_factor=(6.1 / 4, 5.1 / 4), mode="bicubic")
    want_BDhw = model.patch_embed.proj(backbone.normalize(image_BCHW)) + positions_1Dhw
    num_prefix = backbone.num_prefix_tokens
    torch.testing.assert_close(tokens_BTD[:, num_prefix:], want_BDhw.flatten(2).mT)
    if num_prefix:
        assert torch.equal(tokens_BTD[:, :1], model.cls_token.expand(2, -1, -1))


def test_registers_use_the_positions_of_timm():
    model = tiny_model("dinov2-small-reg", img_size=518)
    oracle = as_stated(model, (35, 46), num_prefix=0, with_registers=True)
    image_BCHW = image(490, 644, batch=1)
    have, _ = wrapped(model).family.embed(model, wrapped(model).normalize(image_BCHW))
    want, _ = oracle.family.embed(oracle.model, oracle.normalize(image_BCHW))
    torch.testing.assert_close(have, want, rtol=0, atol=1e-6)
    released = meta_backbone("dinov2-small-reg", position_resample="release")
    assert (released.name, type(released.family)) == ("dinov2-small-reg", type(wrapped(model).family))


def test_another_position_rule_is_another_backbone():
    settings = [(None, "2d", "timm"), (None, "2d", "release"), (14, "2d", "timm"), (14, "2d", "release")]
    backbones = [
        open_backbone(
            BackboneConfig(
                backbone=NAME, random_weights=True, patch_size=size, patch_resample=how, position_resample=positions
            )
        )
        for size, how, positions in settings
    ]
    assert len({each.info.weights_hash for each in backbones}) == 4
    assert [each.name for each in backbones] == [
        NAME,
        f"{NAME} (positions release)",
        f"{NAME} (patch 14)",
        f"{NAME} (patch 14, positions release)",
    ]
    # Bundles have these hashes, so they must not change: that of the tensors, and of the patch size this text.
    own = checkpoint.weights_hash(backbones[0].model)
    assert backbones[0].info.weights_hash == own
    assert backbones[2].info.weights_hash == hashlib.sha256(f"{own} at patch size 14, 2d\n".encode()).hexdigest()
    assert backbones[0].info == load_backbone(NAME, random_weights=True).info


@pytest.mark.parametrize("name", ["sam-base", "dinov3-small", "eva02-large"])
def test_models_without_position_embeddings_are_rejected(name):
    with pytest.raises(ConfigError, match=f"--position-resample release is for plain ViTs.*{name}"):
        meta_backbone(name, position_resample="release")
