"""Layers with the lowest similarity, against all sets of layers, and the resulting advice."""

import itertools

import numpy as np
import pytest

from vitsplit.analysis import advice
from vitsplit.analysis.advice import advise, least_alike_layers, summed_cka
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig


def random_cka(layers, seed):
    features = np.random.default_rng(seed).normal(size=(layers, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return (features @ features.T) ** 2


def two_blocks(layers, first_late, within=0.9, across=0.2):
    is_late = np.arange(layers) >= first_late
    cka = np.where(is_late[:, None] == is_late[None, :], within, across)
    np.fill_diagonal(cka, 1.0)
    return cka


def brute_force(cka, count, first):
    """The least sum over ordered pairs, from the quadratic form of an indicator."""
    best = None
    for bits in itertools.product((0.0, 1.0), repeat=len(cka) - first):
        chosen = np.array([0.0] * first + list(bits))
        if chosen.sum() == count:
            value = chosen @ cka @ chosen
            if best is None or value < best[0] - 1e-12:
                best = value, chosen
    return (best[0] - count) / 2  # without the ones on the diagonal, every pair once


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "first"), [(2, 0), (4, 2), (6, 2), (8, 0)])
def test_chosen_layers_have_the_lowest_similarity(seed, count, first):
    cka = random_cka(12, seed)
    layers = least_alike_layers(cka, count, first)
    assert len(layers) == count and list(layers) == sorted(set(layers)) and layers[0] >= first
    assert summed_cka(cka, layers) == pytest.approx(brute_force(cka, count, first))


@pytest.mark.parametrize("seed", range(6))
def test_greedy_search_reaches_a_local_optimum(seed, monkeypatch):
    monkeypatch.setattr(advice, "MOST_SETS", 0)
    cka = random_cka(14, seed)
    layers = least_alike_layers(cka, 5, 2)
    found = summed_cka(cka, layers)
    for gone, new in itertools.product(layers, set(range(2, 14)) - set(layers)):
        assert summed_cka(cka, tuple(sorted({*layers, new} - {gone}))) >= found - 1e-9
    assert found <= 1.1 * brute_force(cka, 5, 2) + 1e-9


def test_evenly_changing_layers_give_both_ends():
    layers = np.arange(12)
    assert least_alike_layers(0.8 ** np.abs(layers[:, None] - layers), 2, 2) == (2, 11)
    assert least_alike_layers(np.eye(12), 1, 2) == (11,)
    with pytest.raises(ConfigError, match=r"11 layers .*2 to 11"):
        least_alike_layers(np.eye(12), 11, 2)


def test_advice_follows_the_two_blocks():
    split = SplitConfig(num_tuned_layers=3, num_prior_layers=2, first_prior_layer=2)
    found = advise(two_blocks(12, 8), split, SegmentationConfig())
    assert found.num_tuned_layers == 4 and "the late block is layers 8 to 11" in found.why_tuned
    (early, late) = found.prior_layers
    assert 2 <= early < 8 <= late  # one of each block: these are the least similar
    assert found.settings == {
        "num_tuned_layers": 4,
        "selection": "explicit",
        "prior_layers": found.prior_layers,
        "num_prior_layers": 2,
    }
    long = two_blocks(12, 3)
    assert advise(long, split, SegmentationConfig()).num_tuned_layers == 6
    assert "6 of 12" in advise(long, split, SegmentationConfig()).why_tuned
    assert advise(long, split, DetectionConfig()).num_tuned_layers == 9


def test_settings_without_evidence_are_unchanged():
    layers = np.arange(12)
    even = 0.8 ** np.abs(layers[:, None] - layers)
    split = SplitConfig(num_tuned_layers=5, num_prior_layers=1, first_prior_layer=2)
    found = advise(even, split, SegmentationConfig())
    assert found.num_tuned_layers == 5 and "layers change evenly" in found.why_tuned
    assert found.prior_layers == (11,)
    off = SplitConfig(task_head=False, num_prior_layers=2)
    assert "num_tuned_layers" not in advise(even, off, DepthConfig()).settings
    assert advise(even, SplitConfig(prior_head=False), DepthConfig()).settings.keys() == {"num_tuned_layers"}
