"""CKA against its definition, and the division into two blocks against all divisions."""

import itertools

import numpy as np
import pytest
import torch
from tiny_backbones import image

from vitsplit.analysis.cka import CkaEstimator, compare_layers, split_point
from vitsplit.backbone import load_backbone
from vitsplit.errors import ConfigError, DataError


def closed_form(x, y):
    """Linear CKA of centered features, Kornblith et al. (2019), Eq. 4 and Section 3: biased, of all images at once."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def channels(values):
    return torch.tensor(values)[:, None, None]


def unbiased_hsic_by_sums(k, m):
    """HSIC as a U-statistic: the mean over quadruples of different images of K_ij (M_ij + M_qr - 2 M_iq)."""
    quadruples = list(itertools.permutations(range(len(k)), 4))
    return sum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quadruples) / len(quadruples)


def features(count, width, generator):
    return torch.randn(count, width, generator=generator)


def test_one_batch_equals_the_u_statistic():
    generator = torch.Generator().manual_seed(0)
    layers = [features(7, 5, generator), features(7, 3, generator), features(7, 9, generator)]
    estimator = CkaEstimator()
    estimator.add(layers)
    grams = [(each @ each.T).double().numpy() for each in layers]
    hsic = np.array([[unbiased_hsic_by_sums(k, m) for m in grams] for k in grams])
    expected = hsic / np.sqrt(np.outer(hsic.diagonal(), hsic.diagonal()))
    np.testing.assert_allclose(estimator.result(), expected, rtol=1e-5, atol=1e-6)


def test_many_small_batches_approach_the_closed_form():
    generator = torch.Generator().manual_seed(1)
    common = features(4096, 6, generator)
    first = common @ features(6, 8, generator)
    second = common @ features(6, 5, generator) + 0.7 * features(4096, 5, generator)
    estimator = CkaEstimator()
    for begin in range(0, 4096, 16):
        estimator.add([first[begin : begin + 16], second[begin : begin + 16]])
    assert estimator.images == 4096
    # With this many images the bias of the closed form, about features / images, is far below the tolerance.
    assert estimator.result()[0, 1] == pytest.approx(closed_form(first, second), abs=0.02)


def test_unrelated_layers_have_low_cka_in_small_batches():
    generator = torch.Generator().manual_seed(2)
    estimator = CkaEstimator()
    biased = []
    for _ in range(200):
        x, y = features(8, 64, generator), features(8, 64, generator)
        estimator.add([x, y])
        biased.append(closed_form(x, y))
    assert abs(estimator.result()[0, 1]) < 0.05
    assert np.mean(biased) > 0.5  # the average of the closed form over small batches


def test_cka_is_invariant_to_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(3)
    x = features(12, 6, generator)
    rotation, _ = torch.linalg.qr(features(6, 6, generator))
    estimator = CkaEstimator()
    estimator.add([x, 5.0 * x @ rotation + 100.0])
    np.testing.assert_allclose(estimator.result(), 1.0, atol=1e-4)


def test_cka_between_two_backbones():
    backbones = {name: load_backbone(name, random_weights=True) for name in ("vit_tiny_patch16_224",)}
    backbone = backbones["vit_tiny_patch16_224"]
    batches = [image(32, 48, batch=5), image(48, 32, batch=5)]
    found = compare_layers({"a": backbone, "b": backbone}, [[batch, batch] for batch in batches])
    assert found.layers == {"a": 12, "b": 12} and found.images == 10
    np.testing.assert_allclose(found.between("a", "b"), found.between("a", "a"), atol=1e-9)
    np.testing.assert_allclose(found.cka_MM, found.cka_MM.T, atol=1e-12)
    np.testing.assert_allclose(found.cka_MM.diagonal(), 1.0)
    # The same from timm's own intermediate layers, patches flattened.
    estimator = CkaEstimator()
    for batch in batches:
        pixels = (batch / 255 - channels(backbone.info.mean)) / channels(backbone.info.std)
        outputs = backbone.model.forward_intermediates(pixels, indices=12, norm=False, intermediates_only=True)
        estimator.add([output.flatten(1) for output in outputs])
    np.testing.assert_allclose(found.between("a", "a"), estimator.result(), atol=1e-4)


def test_split_point_of_two_blocks():
    cka = np.full((10, 10), 0.2)
    cka[:4, :4] = cka[4:, 4:] = 0.9
    np.fill_diagonal(cka, 1.0)
    found = split_point(cka)
    assert found.first_late_layer == 4
    assert (found.within, found.across) == (pytest.approx(0.9), pytest.approx(0.2))


def test_layers_that_change_evenly_have_no_blocks():
    layers = np.arange(12)
    band = split_point(0.8 ** np.abs(layers[:, None] - layers))
    assert band.contrast > 0.2 and band.beyond_distance == pytest.approx(0.0, abs=1e-9)
    blocks = np.where((layers[:, None] < 6) == (layers < 6), 0.9, 0.2)
    np.fill_diagonal(blocks, 1.0)
    assert split_point(blocks).beyond_distance > 0.2


def test_too_few_images_or_layers_are_rejected():
    with pytest.raises(ConfigError, match="batch of 3"):
        CkaEstimator().add([torch.randn(3, 2)])
    with pytest.raises(DataError, match="no images"):
        CkaEstimator().result()
    estimator = CkaEstimator()
    estimator.add([torch.ones(5, 2)])
    with pytest.raises(DataError, match="no variance"):
        estimator.result()
    with pytest.raises(ConfigError, match="3 layers"):
        split_point(np.eye(3))
