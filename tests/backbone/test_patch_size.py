"""Other patch sizes: invariants, and the release's resampling as a reference."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import KINDS, MEAN, STD, tiny_backbone, tiny_model

from vitsplit.backbone import load_backbone, meta_backbone, open_backbone
from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.backbone.config import BackboneConfig
from vitsplit.backbone.patch_size import set_patch_size
from vitsplit.errors import BundleError, ConfigError
from vitsplit.types import TapRequest

NAME = "vit_tiny_patch16_224.augreg_in21k"
ALL = TapRequest(tokens=frozenset(range(5)), maps=frozenset(range(4)))


def at(kind, patch_size, how="2d"):
    model = tiny_model(kind)
    set_patch_size(model, patch_size, how)
    return Backbone(model, BackboneInfo(kind, kind, "none", "a test", "", MEAN, STD))


def enlarged(image_BCHW, old, new):
    """Resizes every patch separately by bicubic interpolation."""
    batch, channels, height, width = image_BCHW.shape
    patches = image_BCHW.reshape(batch, channels, height // old, old, width // old, old).permute(0, 2, 4, 1, 3, 5)
    grid = patches.shape[1:3]
    large = F.interpolate(patches.flatten(0, 2), (new, new), mode="bicubic", antialias=True)
    return (
        large.unflatten(0, (batch, *grid)).permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, *(n * new for n in grid))
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sam-base"])
@pytest.mark.parametrize("grid", [(5, 5), (3, 7)])
def test_resampled_patches_give_the_same_maps_of_an_enlarged_image(kind, grid):
    own = tiny_backbone(kind)
    old, new = own.patch_size, own.patch_size + 2
    image_BCHW = torch.rand(2, 3, grid[0] * old, grid[1] * old, generator=torch.Generator().manual_seed(0))
    resampled = at(kind, new)
    assert resampled.patch_size == new
    want, have = own(image_BCHW, ALL), resampled(enlarged(image_BCHW, old, new), ALL)
    assert want.grid == have.grid == grid
    for depth in range(5):
        torch.testing.assert_close(have.tokens[depth], want.tokens[depth], rtol=2e-3, atol=2e-3)
    for index in range(4):
        torch.testing.assert_close(have.maps[index], want.maps[index], rtol=2e-3, atol=2e-3)


def linear_by_hand(values, size):
    """Along the last axis, samples in the middle of their cells, as PyTorch's ``align_corners=False``."""
    centers = (np.arange(size) + 0.5) * values.shape[-1] / size - 0.5
    return np.apply_along_axis(lambda row: np.interp(centers, np.arange(len(row)), row), -1, values)


@pytest.mark.parametrize(("kind", "num_prefix"), [("dinov2-small", 1), ("dinov2-small-reg", 0)])
def test_release_resampling_is_bilinear(kind, num_prefix):
    before = tiny_model(kind, img_size=98)  # 7 x 7 positions at 14, 6 x 6 at 16
    kernel, positions = before.patch_embed.proj.weight.detach().numpy(), before.pos_embed.detach().numpy()
    after = tiny_model(kind, img_size=98)
    set_patch_size(after, 16, "release")
    by_rows = linear_by_hand(kernel, 16)
    want = np.swapaxes(linear_by_hand(np.swapaxes(by_rows, 2, 3), 16), 2, 3)
    np.testing.assert_allclose(after.patch_embed.proj.weight.detach().numpy(), want, atol=1e-5)
    patches = np.swapaxes(linear_by_hand(np.swapaxes(positions[:, num_prefix:], 1, 2), 36), 1, 2)
    want = np.concatenate([positions[:, :num_prefix], patches], axis=1)
    np.testing.assert_allclose(after.pos_embed.detach().numpy(), want, atol=1e-5)
    assert after.patch_embed.grid_size == (6, 6)
    assert torch.equal(after.patch_embed.proj.bias, before.patch_embed.proj.bias)


@pytest.mark.parametrize(("how", "positions"), [("2d", 1370), ("release", 1025)])
def test_dinov2_at_patch_16_has_the_sizes_of_the_release(how, positions):
    backbone = meta_backbone("dinov2-small", patch_size=16, patch_resample=how)
    assert backbone.model.pos_embed.shape == (1, positions, 384)
    assert backbone.model.patch_embed.proj.weight.shape == (384, 3, 16, 16)
    taps = backbone(torch.empty(1, 3, 800, 1024, dtype=torch.uint8, device="meta"), TapRequest(maps=frozenset({11})))
    assert taps.maps[11].shape == (1, 384, 50, 64)


def test_another_patch_size_is_another_backbone_with_a_loadable_name():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    configs = [
        BackboneConfig(backbone=NAME, random_weights=True, patch_size=size, patch_resample=how)
        for size, how in ((None, "2d"), (16, "release"), (14, "2d"), (14, "release"), (12, "2d"))
    ]
    own, same, *others = [open_backbone(config) for config in configs]
    assert torch.equal(torch.get_rng_state(), state)
    # The original patch size needs no resampling and keeps the hash of the backbone.
    assert own.info == same.info == load_backbone(NAME, random_weights=True).info
    assert len({backbone.info.weights_hash for backbone in (own, *others)}) == 4
    assert [backbone.name for backbone in (own, *others)] == [
        NAME,
        f"{NAME} (patch 14)",
        f"{NAME} (patch 14, release)",
        f"{NAME} (patch 12)",
    ]
    assert {backbone.info.name for backbone in others} == {NAME}
    assert open_backbone(configs[2]).info == others[0].info
    assert not any(value.requires_grad for backbone in others for value in backbone.parameters())


def test_meta_shapes_equal_the_shapes_of_the_weights():
    config = BackboneConfig(backbone=NAME, random_weights=True, patch_size=14)
    real, shapes = open_backbone(config), open_backbone(config, only_shapes=True)
    assert all(value.is_meta for value in shapes.parameters())
    assert {name: value.shape for name, value in real.named_parameters()} == {
        name: value.shape for name, value in shapes.named_parameters()
    }
    assert (shapes.name, shapes.patch_size) == (real.name, real.patch_size)


@pytest.mark.parametrize(
    ("name", "patch_size", "how", "message"),
    [
        ("sam-base", 14, "2d", "sam-base cannot be run at patch size 14"),
        ("dinov3-small", 14, "release", "dinov3-small has none. Use --patch-resample 2d"),
        ("eva02-large", 16, "release", "is for plain ViTs"),
        ("dinov2-small", 0, "2d", "--patch-size .* 0"),
    ],
)
def test_invalid_patch_sizes_are_rejected_before_loading(name, patch_size, how, message, monkeypatch):
    monkeypatch.setattr("vitsplit.backbone.weights._find", lambda *_: pytest.fail("weights were looked for"))
    for only_shapes in (True, False):
        with pytest.raises(ConfigError, match=message):
            open_backbone(
                BackboneConfig(backbone=name, patch_size=patch_size, patch_resample=how), only_shapes=only_shapes
            )


def test_a_bundle_at_patch_16_rejects_its_backbone_at_patch_14(tmp_path):
    from vitsplit.bundle import Card, check_backbone

    at_14, at_16 = (load_backbone(NAME, random_weights=True, patch_size=size) for size in (14, None))
    info = at_14.info
    card = Card(
        task="detection",
        config=None,
        description={},
        backbone={"name": info.name, "title": info.title, "weights_hash": info.weights_hash},
        prior_layers=(),
        metrics={},
        version="",
    )
    check_backbone(card, at_14, tmp_path)
    with pytest.raises(BundleError) as refused:
        check_backbone(card, at_16, tmp_path)
    for fact in (f"{NAME} (patch 14) with", f"{NAME} with", info.weights_hash[:16], at_16.info.weights_hash[:16]):
        assert fact in str(refused.value)
