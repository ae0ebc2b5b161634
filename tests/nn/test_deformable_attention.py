import math

import pytest
import torch
from torch import nn
from transformers.models.deformable_detr import modeling_deformable_detr

from vitsplit.errors import ConfigError
from vitsplit.nn.deformable_attention import DeformableAttention, Geometry, sample_levels

CPU = torch.device("cpu")
LEVELS = [(5, 7), (3, 4), (2, 1)]
CASES = [
    # levels, batch, queries, heads, channels, points, reach
    (LEVELS, 2, 6, 3, 4, 2, 1.0),
    (LEVELS, 1, 5, 2, 8, 4, 4.0),
    ([(4, 6)], 3, 4, 1, 2, 1, 2.0),
    ([(1, 1), (1, 9)], 2, 3, 2, 4, 3, 30.0),
]


def _inputs(case, dtype=torch.float32):
    levels, batch, queries, heads, channels, points, reach = case
    generator = torch.Generator().manual_seed(0)
    total = sum(height * width for height, width in levels)
    value = torch.randn(batch, total, heads, channels, generator=generator, dtype=dtype)
    position = torch.rand(batch, queries, heads, len(levels), points, 2, generator=generator, dtype=dtype)
    position = position * torch.tensor([(width, height) for height, width in levels]).view(-1, 1, 2)
    position = position + reach * torch.randn(position.shape, generator=generator, dtype=dtype)
    weight = torch.randn(batch, queries, heads, len(levels), points, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (value, position, weight)]


def _sample(levels):
    geometry = Geometry.between([(1, 1)], levels, CPU)
    return lambda value, position, weight: sample_levels(value, position, weight, geometry)


def _pixel(level_hwC, y, x):
    height, width, channels = level_hwC.shape
    if 0 <= y < height and 0 <= x < width:
        return level_hwC[y, x]
    return torch.zeros(channels, dtype=level_hwC.dtype)


def _by_hand(levels, value, position, weight):
    """Brute force: every sampled value separately."""
    batch, queries, heads, num_levels, points, _ = position.shape
    parts = value.split([height * width for height, width in levels], dim=1)
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                for level in range(num_levels):
                    level_hwC = parts[level][b, :, h].reshape(*levels[level], -1)
                    for p in range(points):
                        x, y = position[b, q, h, level, p].tolist()
                        left, top = math.floor(x), math.floor(y)
                        a, c = x - left, y - top
                        found = (
                            (1 - c) * (1 - a) * _pixel(level_hwC, top, left)
                            + (1 - c) * a * _pixel(level_hwC, top, left + 1)
                            + c * (1 - a) * _pixel(level_hwC, top + 1, left)
                            + c * a * _pixel(level_hwC, top + 1, left + 1)
                        )
                        out[b, q, h] += weight[b, q, h, level, p] * found
    return out.flatten(2)


def _in_transformers(levels, value, position, weight):
    """The library's form takes positions as shares of the level's sides, whose first pixel begins at 0."""
    sides = torch.tensor([(width, height) for height, width in levels]).view(-1, 1, 2)
    attention = modeling_deformable_detr.MultiScaleDeformableAttention()
    return attention(value, torch.tensor(levels), levels, None, (position + 0.5) / sides, weight, 64)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case[0])} levels, {case[3]} heads, reach {case[-1]}")
def test_sampling_equals_brute_force(case):
    value, position, weight = (tensor.detach() for tensor in _inputs(case, torch.float64))
    expected = _by_hand(case[0], value, position, weight)
    torch.testing.assert_close(_sample(case[0])(value, position, weight), expected, rtol=1e-10, atol=1e-10)


def _with_gradients(form, inputs):
    out = form(*inputs)
    # Uneven weights, so that a gradient that lands in the wrong place is seen.
    seed = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * seed).sum(), inputs)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case[0])} levels, {case[3]} heads, reach {case[-1]}")
def test_sampling_equals_transformers(case):
    ours = _with_gradients(_sample(case[0]), _inputs(case))
    oracle = _with_gradients(lambda *inputs: _in_transformers(case[0], *inputs), _inputs(case))
    for name, a, b in zip(("output", "value", "position", "weight"), ours, oracle, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_gradcheck():
    value, position, weight = _inputs(([(3, 4), (2, 2)], 2, 2, 2, 2, 2, 1.0), torch.float64)
    # Away from whole pixels, where the sampled value has a kink.
    position = (
        position.detach().floor() + 0.3 + 0.4 * torch.rand(position.shape, dtype=torch.float64)
    ).requires_grad_()
    assert torch.autograd.gradcheck(_sample([(3, 4), (2, 2)]), (value, position, weight), fast_mode=True)


def test_distant_positions_give_zero():
    value, position, weight = (tensor.detach() for tensor in _inputs(CASES[0]))
    for far in (1e12, -1e12):
        found = _sample(LEVELS)(value, torch.full_like(position, far), weight)
        assert torch.equal(found, torch.zeros_like(found))


def test_reference_points_are_pixel_centers():
    geometry = Geometry.between([(2, 3), (1, 1)], [(2, 3), (4, 6)], CPU)
    own, finer = geometry.center_QL2.unbind(1)
    grid = [(x, y) for y in range(2) for x in range(3)]
    torch.testing.assert_close(own, torch.tensor([*grid, (1.0, 0.5)], dtype=torch.float32))
    # A pixel of the coarse map covers two by two of the fine one: its middle is between them.
    torch.testing.assert_close(finer[:6], torch.tensor([(2 * x + 0.5, 2 * y + 0.5) for x, y in grid]))
    assert geometry.first_L.tolist() == [0, 6]


def _equal_layers(ours, oracle):
    pairs = {
        "offset": oracle.sampling_offsets,
        "weight": oracle.attention_weights,
        "value": oracle.value_proj,
        "out": oracle.output_proj,
    }
    return [(getattr(ours, name), layer) for name, layer in pairs.items()]


def _layer_of_transformers(width, num_heads, num_levels, num_points):
    config = modeling_deformable_detr.DeformableDetrConfig(
        d_model=width, num_feature_levels=num_levels, encoder_attention_heads=num_heads
    )
    return modeling_deformable_detr.DeformableDetrMultiscaleDeformableAttention(config, num_heads, num_points)


def test_the_layer_equals_transformers():
    torch.manual_seed(0)
    ours = DeformableAttention(32, num_levels=3, num_heads=4, num_points=2)
    oracle = _layer_of_transformers(32, 4, 3, 2)
    for mine, theirs in _equal_layers(ours, oracle):
        nn.init.normal_(mine.weight, std=0.2)
        theirs.load_state_dict(mine.state_dict())
    query, feature = torch.randn(2, 6, 32), torch.randn(2, 49, 32)
    geometry = Geometry.between([(2, 3)], LEVELS, CPU)
    reference = torch.tensor([((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)])
    expected, _ = oracle(
        hidden_states=query,
        encoder_hidden_states=feature,
        reference_points=reference[None, :, None].expand(2, -1, 3, -1),
        spatial_shapes=torch.tensor(LEVELS),
        spatial_shapes_list=LEVELS,
        level_start_index=torch.tensor([0, 35, 47]),
    )
    torch.testing.assert_close(ours(query, feature, geometry), expected, rtol=1e-4, atol=1e-5)


def test_initialization_equals_deformable_detr():
    layer = DeformableAttention(24, num_levels=2, num_heads=4, num_points=3)
    query, other = torch.randn(2, 1, 6, 24)
    feature, geometry = torch.randn(1, 47, 24), Geometry.between([(2, 3)], LEVELS[:2], CPU)
    assert torch.equal(layer(query, feature, geometry), layer(other, feature, geometry))
    # Four heads sample to the right, down, left and up at one, two and three pixels, on both levels.
    offset = layer.offset.bias.view(4, 2, 3, 2)
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for point in range(3):
            expected = torch.tensor(direction) * (point + 1.0)
            torch.testing.assert_close(offset[head, :, point], expected.expand(2, 2), atol=1e-6, rtol=0)
    # Eight heads sample the eight neighbors: each step is one pixel in the larger of x and y.
    diagonal = DeformableAttention(24, num_levels=1, num_heads=8, num_points=1).offset.bias.view(8, 2)
    torch.testing.assert_close(diagonal[1], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(diagonal[5], torch.tensor([-1.0, -1.0]))
    bound = (6 / 48) ** 0.5  # Xavier, uniform
    assert 0.9 * bound < layer.value.weight.abs().max().item() <= bound
    assert not any(p.any() for p in (layer.offset.weight, *layer.weight.parameters(), layer.value.bias, layer.out.bias))


def test_bfloat16_samples_in_float32():
    torch.manual_seed(0)
    layer = DeformableAttention(32, num_levels=1, num_heads=4)
    # On a map this large bfloat16 has only even pixels.
    feature = torch.randn(1, 300 * 2, 32)
    geometry = Geometry.between([(2, 300)], [(2, 300)], CPU)
    expected = layer(feature, feature, geometry)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(feature, feature, geometry)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.02 * expected.norm()
    found.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_a_narrower_value_has_fewer_parameters():
    layer = DeformableAttention(64, num_levels=3, num_heads=4, ratio=0.5)
    assert layer.value.out_features == 32 and layer.out.in_features == 32
    assert layer.offset.out_features == 4 * 3 * 4 * 2 and layer.weight.out_features == 4 * 3 * 4


def test_indivisible_channels_are_rejected():
    with pytest.raises(ConfigError, match=r"5 heads .*32 channels \(width 64, ratio 0\.5\)"):
        DeformableAttention(64, num_levels=1, num_heads=5, ratio=0.5)
