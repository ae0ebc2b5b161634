"""Against PyTorch's own convolutions, in values and gradients."""

import pytest
import torch
from torch import nn

from vitsplit.nn.pointwise import Doubling, Pointwise, smooth


def _pair(name: str, in_channels: int, out_channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and PyTorch's, begun from the same seed."""
    torch.manual_seed(3)
    ours = {"doubling": Doubling, "pointwise": Pointwise}[name](in_channels, out_channels)
    torch.manual_seed(3)
    if name == "doubling":
        return ours, nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
    return ours, nn.Conv2d(in_channels, out_channels, kernel_size=1)


@pytest.mark.parametrize("name", ["doubling", "pointwise"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_the_convolution(name, channels_last):
    ours, oracle = (layer.double() for layer in _pair(name, 5, 3))
    map_BChw = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    if channels_last:
        map_BChw = map_BChw.contiguous(memory_format=torch.channels_last)
    inputs = [map_BChw.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((ours, oracle), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, oracle.weight.grad)
    torch.testing.assert_close(ours.bias.grad, oracle.bias.grad)


@pytest.mark.parametrize("name", ["doubling", "pointwise"])
def test_initialization_equals_pytorch(name):
    ours, oracle = _pair(name, 8, 4)
    assert ours.state_dict().keys() == oracle.state_dict().keys()
    assert all(torch.equal(tensor, oracle.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_smoothing_removes_period_2_patterns_and_is_bilinear():
    map_BChw = torch.randn(2, 3, 4, 5)
    repeated = map_BChw.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bilinear = nn.functional.interpolate(map_BChw, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(smooth(repeated), bilinear)
    pattern = torch.randn(1, 3, 2, 2).repeat(2, 1, 4, 5)
    inner = smooth(repeated + pattern)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inner, (bilinear + pattern.mean((2, 3), keepdim=True))[..., 1:-1, 1:-1])
