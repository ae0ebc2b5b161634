import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from vitsplit.nn.deformable_convolution import DeformConv3x3, deform_conv3x3, deform_conv3x3_by_grid

SIZES = [(1, 4, 6, 1, 1), (1, 8, 8, 5, 7), (3, 6, 4, 9, 4), (2, 4, 4, 1, 6), (2, 16, 16, 12, 12)]


def _inputs(size, reach, dtype=torch.float32):
    batch, width, out, height, columns = size
    generator = torch.Generator().manual_seed(0)
    map_BDhw = torch.randn(batch, width, height, columns, generator=generator, dtype=dtype)
    offset_BChw = reach * torch.randn(batch, 18, height, columns, generator=generator, dtype=dtype)
    weight_EDkk = torch.randn(out, width, 3, 3, generator=generator, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (map_BDhw, offset_BChw, weight_EDkk)]


def _with_gradients(convolve, inputs):
    out = convolve(*inputs)
    # Uneven weights, so that a gradient that lands in the wrong place is seen.
    seed = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * seed).sum(), inputs)]


def _torchvision(map_BDhw, offset_BChw, weight_EDkk):
    return deform_conv2d(map_BDhw, offset_BChw, weight_EDkk, padding=1)


@pytest.mark.parametrize("reach", [0.3, 3.0, 60.0], ids=["near", "far", "beyond the border"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_torchvision(size, reach):
    ours, oracle = (_with_gradients(form, _inputs(size, reach)) for form in (deform_conv3x3, _torchvision))
    for name, a, b in zip(("output", "map", "offset", "weight"), ours, oracle, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(
            a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()), msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("reach", [0.3, 3.0, 60.0], ids=["near", "far", "beyond the border"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_grid_form_equals_torchvision(size, reach):
    inputs = [tensor.detach() for tensor in _inputs(size, reach)]
    torch.testing.assert_close(deform_conv3x3_by_grid(*inputs), _torchvision(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_zero_offsets_equal_a_convolution(size):
    map_BDhw, offset_BChw, weight_EDkk = _inputs(size, 0.0)
    torch.testing.assert_close(
        deform_conv3x3(map_BDhw, offset_BChw, weight_EDkk),
        F.conv2d(map_BDhw, weight_EDkk, padding=1),
        rtol=1e-4,
        atol=1e-4,
    )
    ours, oracle = (_with_gradients(form, _inputs(size, 0.0))[2] for form in (deform_conv3x3, _torchvision))
    torch.testing.assert_close(ours, oracle, rtol=1e-4, atol=1e-4)


def test_gradcheck():
    map_BDhw, offset_BChw, weight_EDkk = _inputs((2, 2, 2, 2, 3), 1.0, torch.float64)
    # Away from whole pixels, where the sampled value has a kink.
    offset = ((offset_BChw.detach().floor() + 0.3) + 0.4 * torch.rand_like(offset_BChw)).requires_grad_()
    assert torch.autograd.gradcheck(deform_conv3x3, (map_BDhw, offset, weight_EDkk), fast_mode=True)


def test_integer_offsets_move_the_kernel():
    map_BDhw = torch.arange(20.0).view(1, 1, 4, 5)
    offset_BChw = torch.zeros(1, 18, 4, 5)
    offset_BChw[:, 8], offset_BChw[:, 9] = 1.0, -2.0  # the middle tap reads one row below, two columns to the left
    weight_EDkk = torch.zeros(1, 1, 3, 3)
    weight_EDkk[..., 1, 1] = 1.0
    expected = torch.zeros(4, 5)
    expected[:3, 2:] = map_BDhw[0, 0, 1:, :3]
    torch.testing.assert_close(deform_conv3x3(map_BDhw, offset_BChw, weight_EDkk)[0, 0], expected)


def test_large_offsets_give_zero():
    map_BDhw, _, weight_EDkk = _inputs((1, 4, 4, 3, 3), 0.0)
    offset_BChw = torch.full((1, 18, 3, 3), 1e12)
    assert torch.equal(deform_conv3x3(map_BDhw, offset_BChw, weight_EDkk), torch.zeros(1, 4, 3, 3))


def test_backward_is_deterministic():
    first = _with_gradients(deform_conv3x3, _inputs((2, 16, 16, 12, 12), 2.0))
    for _ in range(5):
        again = _with_gradients(deform_conv3x3, _inputs((2, 16, 16, 12, 12), 2.0))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_results_do_not_depend_on_memory_layout():
    map_BDhw, offset_BChw, weight_EDkk = _inputs((2, 8, 8, 6, 7), 1.0)
    expected = deform_conv3x3(map_BDhw, offset_BChw, weight_EDkk)
    last = map_BDhw.detach().to(memory_format=torch.channels_last)
    offset_last = offset_BChw.detach().to(memory_format=torch.channels_last)
    assert torch.equal(deform_conv3x3(last, offset_last, weight_EDkk), expected)
    # As taps come: a view into token sequences whose first token is the class token.
    tokens_BTD = torch.cat([torch.randn(2, 1, 8), map_BDhw.detach().flatten(2).transpose(1, 2)], dim=1)
    view_BDhw = tokens_BTD[:, 1:].unflatten(1, (6, 7)).permute(0, 3, 1, 2)
    assert torch.equal(deform_conv3x3(view_BDhw, offset_BChw, weight_EDkk), expected)


def test_bfloat16_on_a_cpu_is_close():
    inputs = _inputs((2, 32, 32, 9, 9), 2.0)
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    ours = _with_gradients(deform_conv3x3, halves)
    oracle = _with_gradients(_torchvision, [half.detach().float().requires_grad_() for half in halves])
    assert ours[0].dtype == torch.bfloat16
    for a, b in zip(ours, oracle, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()


def test_autocast_computes_the_layer_in_bfloat16():
    torch.manual_seed(0)
    layer = DeformConv3x3(32)
    map_BDhw = torch.randn(1, 32, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(map_BDhw)
    out.float().square().mean().backward()
    assert out.dtype == torch.bfloat16
    assert (out.float() - layer(map_BDhw)).norm() < 0.03 * layer(map_BDhw).norm()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_the_layer_equals_the_release():
    layer = DeformConv3x3(48)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (48, 48, 3, 3),
        "offset.weight": (18, 48, 3, 3),
        "offset.bias": (18,),
    }
    bound = (2 * 3 / (48 * 9)) ** 0.5  # Kaiming, uniform, for ReLU
    assert 0.95 * bound < layer.weight.abs().max().item() <= bound
    offset_bound = (1 / (48 * 9)) ** 0.5  # PyTorch's default for a convolution
    assert 0.9 * offset_bound < layer.offset.weight.abs().max().item() <= offset_bound


def test_the_initial_layer_is_a_convolution():
    layer = DeformConv3x3(16, offset_init="zero")
    map_BDhw = torch.randn(2, 16, 6, 5)
    torch.testing.assert_close(layer(map_BDhw), F.conv2d(map_BDhw, layer.weight, padding=1), rtol=1e-4, atol=1e-5)


def test_the_torchvision_form_is_equal_and_exportable():
    torch.manual_seed(0)
    layer = DeformConv3x3(16).eval()
    map_BDhw = torch.randn(1, 16, 6, 8)
    expected = layer(map_BDhw)
    layer.implementation = "torchvision"
    torch.testing.assert_close(layer(map_BDhw), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(layer, (map_BDhw,))
    assert any("deform_conv2d" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(map_BDhw), expected, rtol=1e-4, atol=1e-5)
