"""Maps of layers against those of the models, and principal components against a known signal."""

import numpy as np
import pytest
import torch
from tiny_backbones import image, tiny_backbone

from vitsplit.analysis.features import (
    ModelMaps,
    backbone_maps,
    principal_components,
    rescale_percentiles,
    trained_maps,
)
from vitsplit.analysis.features_report import COLUMNS, color_models, draw_sheet
from vitsplit.errors import ConfigError
from vitsplit.methods.finetune import FullFineTune
from vitsplit.methods.last_layer import FrozenHeadConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.head import SplitHead
from vitsplit.model import Head


def model_of(head):
    return Head(head, torch.nn.Identity()).eval()


def close(first, second):
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2-small-reg", "dinov3-small", "sam-base"])
def test_maps_equal_the_backbone_layers(kind):
    backbone = tiny_backbone(kind)
    pixels = image(64, 48)
    found = backbone_maps("it", backbone, pixels)
    assert found.labels == ("layer 0", "layer 1", "layer 2", "layer 3")
    x, rope = backbone.family.embed(
        backbone.model, torch.nn.functional.pad(backbone.normalize(pixels), padding(backbone))
    )
    grid = tuple(-(-side // backbone.patch_size) for side in (64, 48))
    for block, map_BDhw in zip(backbone.blocks, found.maps, strict=True):
        x = backbone.family.run_block(block, x, grid, rope)
        close(map_BDhw, x[:, backbone.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid))


def padding(backbone):
    found = backbone.padding(64, 48)
    return found.left, found.right, found.top, found.bottom


@pytest.mark.parametrize("selection", ["uniform", "gate"])
@pytest.mark.parametrize("kind", ["dinov2-small-reg", "dinov3-small", "sam-base"])
def test_an_untrained_head_repeats_the_frozen_layers_and_ends_in_its_own_output(kind, selection):
    backbone = tiny_backbone(kind)
    config = SplitConfig(num_tuned_layers=2, num_prior_layers=2, first_prior_layer=1, selection=selection)
    head = SplitHead(backbone, config)
    pixels = image(48, 64)
    frozen = backbone_maps("frozen", backbone, pixels)
    found = trained_maps("trained", backbone, model_of(head), pixels)
    assert found.labels == ("layer 0", "layer 1", "tuned 2", "tuned 3", "prior", "fused")
    for layer in range(4):
        close(found.maps[layer], frozen.maps[layer])
    with torch.no_grad():
        taps = backbone(pixels, head.request(train=False))
        close(found.maps[-1], head(taps))
        normed = trained_maps("trained", backbone, model_of(head), pixels, normed=True)
        close(normed.maps[3], head.task_head(taps))
        close(head.fusion([found.maps[4], normed.maps[3]]), found.maps[5])


def test_a_trained_block_changes_later_maps_and_windows_are_used():
    backbone = tiny_backbone("dinov2-small")
    head = SplitHead(backbone, SplitConfig(num_tuned_layers=3, prior_head=False, fusion=False, task_head_window=2))
    pixels = image(56, 70)
    with torch.no_grad():
        for value in head.task_head.blocks[1].parameters():
            value.add_(0.05)
        found = trained_maps("it", backbone, model_of(head), pixels, normed=True)
        frozen = backbone_maps("frozen", backbone, pixels, normed=True)
        assert found.labels == ("layer 0", "tuned 1", "tuned 2", "tuned 3", "fused")
        close(found.maps[0], frozen.maps[0])
        assert not torch.allclose(found.maps[2], frozen.maps[2], atol=1e-2)
        close(found.maps[3], head.task_head(backbone(pixels, head.request(train=False))))
        close(found.maps[4], found.maps[3])


def test_heads_of_other_methods():
    backbone = tiny_backbone("dinov2-small")
    pixels = image(56, 70)
    frozen = backbone_maps("frozen", backbone, pixels, normed=True)
    probe = trained_maps(
        "probe", backbone, model_of(FrozenHeadConfig().build(backbone, num_maps=1)), pixels, normed=True
    )
    tuned = trained_maps("tuned", backbone, model_of(FullFineTune(backbone)), pixels, normed=True)
    assert probe.labels == frozen.labels and tuned.labels == ("tuned 0", "tuned 1", "tuned 2", "tuned 3")
    for layer in range(4):
        close(probe.maps[layer], frozen.maps[layer])
        close(tuned.maps[layer], frozen.maps[layer])
    with pytest.raises(ConfigError, match="Linear"):
        trained_maps("other", backbone, model_of(torch.nn.Linear(1, 1)), pixels)


def known_signal(generator, images=2, side=6, width=20):
    """Three orthogonal directions with scores of known, different variances, plus a constant."""
    directions, _ = torch.linalg.qr(torch.randn(width, 3, generator=generator))
    scores, _ = torch.linalg.qr(torch.randn(images * side * side, 4, generator=generator))
    scores -= scores.mean(0)
    scores, _ = torch.linalg.qr(scores)
    scores = scores[:, :3] * torch.tensor([9.0, 4.0, 1.0])
    tokens = scores @ directions.T + torch.randn(width, generator=generator)
    return tokens.reshape(images, side, side, width).permute(0, 3, 1, 2), scores.reshape(images, side, side, 3)


def test_components_of_a_known_signal_are_recovered_up_to_sign():
    map_BDhw, scores = known_signal(torch.Generator().manual_seed(0))
    found, shares = principal_components(map_BDhw)
    for component in range(3):
        same, other = (found[..., component] - scores[..., component]), (found[..., component] + scores[..., component])
        assert min(float(same.abs().max()), float(other.abs().max())) < 1e-4
    np.testing.assert_allclose(shares, np.array([81, 16, 1]) / 98, atol=1e-5)
    turned, _ = principal_components(-map_BDhw, found)  # as in the reference
    torch.testing.assert_close(turned, found, rtol=0, atol=1e-4)


def test_stretching_clips_one_percent_at_either_end():
    values = torch.arange(1000.0).reshape(10, 10, 10, 1).repeat(1, 1, 1, 2) * torch.tensor([1.0, -3.0])
    found = rescale_percentiles(values)
    assert float(found.min()) == 0.0 and float(found.max()) == 1.0
    assert (found == 0).flatten(0, 2).sum(0).tolist() == [10, 10]
    assert float(rescale_percentiles(torch.ones(1, 2, 2, 1)).max()) == 0.0


def test_channel_colors_follow_the_first_channel():
    map_BDhw = torch.zeros(1, 3, 1, 4)
    map_BDhw[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    ((colors,),), _ = color_models([ModelMaps("m", ("layer 0",), (map_BDhw,))], "channel")
    from matplotlib import colormaps

    ends = np.array(colormaps["viridis"]([0.0, 1.0]))[:, :3] * 255
    np.testing.assert_allclose(colors[0, 0, [0, 3]], ends, atol=1)


def test_a_sheet_has_a_cell_for_every_map():
    pixels = np.zeros((30, 40, 3), np.uint8)
    shades = [np.full((2, 2, 3), 10 * place, np.uint8) for place in range(COLUMNS + 3)]
    labels = [f"layer {place}" for place in range(COLUMNS + 3)]
    sheet = np.asarray(draw_sheet(pixels, [("a", labels, shades), ("b", labels[:2], shades[:2])]))
    counts = {shade: int((sheet == shade).all(-1).sum()) for shade in (10, 20, 10 * (COLUMNS + 2))}
    assert counts[10] >= 2 * 128 * 96 > counts[20] >= 128 * 96 and counts[10 * (COLUMNS + 2)] >= 128 * 96
