"""Recomputation in the backward pass gives the same gradients as saved activations."""

import torch
import torch.nn.functional as F

from vitsplit.nn.activation_checkpointing import recomputed
from vitsplit.nn.deformable_convolution import NUM_TAPS, DeformConv3x3
from vitsplit.tasks.segmentation.decoder import SegmentationDecoder


def _kept(function) -> list[int]:
    """Numbers of elements that a function saves for its backward pass; each storage once."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda x: x):
        output = function()
    sizes = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in kept}
    del output
    return list(sizes.values())


def test_value_and_gradients_equal_the_function():
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def function(x, w):
        return F.gelu(x.sin()) @ w

    plain, ours = function(x, w), recomputed(function, x, w)
    assert torch.equal(plain, ours)
    for a, b in zip(torch.autograd.grad(plain.sum(), (x, w)), torch.autograd.grad(ours.sum(), (x, w)), strict=True):
        assert torch.equal(a, b)


def test_the_last_product_is_computed_once():
    calls = []

    def function(x, w):
        x = x.sin()
        calls.append("begun")
        x = x @ w
        calls.append("ended")
        return x

    x, w = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    recomputed(function, x, w).sum().backward()
    assert calls == ["begun", "ended", "begun"]


def test_nothing_is_recomputed_without_gradients():
    calls = []
    with torch.no_grad():
        recomputed(lambda x: calls.append(1) or x.sin(), torch.ones(2, requires_grad=True))
    assert calls == [1]


def test_sampled_rows_are_not_saved():
    layer, map_BDhw = DeformConv3x3(8), torch.randn(2, 8, 5, 6, requires_grad=True)
    assert max(_kept(lambda: layer(map_BDhw))) < map_BDhw.numel() * NUM_TAPS


def test_the_decoder_saves_three_of_four_large_maps():
    decoder, map_BDhw = SegmentationDecoder(32, 3), torch.randn(2, 32, 5, 6)
    # The output of the second upsampling, and the input and output of the last norm.
    assert _kept(lambda: decoder(map_BDhw)).count(16 * map_BDhw.numel()) == 3
