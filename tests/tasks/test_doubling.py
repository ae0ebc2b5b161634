"""Against PyTorch's own transposed convolution, in values and gradients."""

import pytest
import torch
from torch import nn

from vitsplit.tasks.doubling import Doubling


@pytest.mark.parametrize("channels_last", [True, False])
def test_it_is_the_transposed_convolution(channels_last):
    torch.manual_seed(0)
    doubling = Doubling(5, 3).double()
    oracle = nn.ConvTranspose2d(5, 3, kernel_size=2, stride=2).double()
    oracle.load_state_dict(doubling.state_dict())
    map_BChw = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    if channels_last:
        map_BChw = map_BChw.contiguous(memory_format=torch.channels_last)
    inputs = [map_BChw.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((doubling, oracle), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    assert outputs[0].is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(outputs[0])
    for output in outputs:
        (output * weights).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(doubling.weight.grad, oracle.weight.grad)
    torch.testing.assert_close(doubling.bias.grad, oracle.bias.grad)


def test_it_starts_as_pytorch_s_does():
    torch.manual_seed(3)
    doubling = Doubling(8, 4)
    torch.manual_seed(3)
    oracle = nn.ConvTranspose2d(8, 4, kernel_size=2, stride=2)
    assert all(torch.equal(tensor, oracle.state_dict()[name]) for name, tensor in doubling.state_dict().items())
