import dataclasses

import pytest
import torch
from torch import nn

from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.decoder import DepthDecoder, LinearDepthDecoder, Meters

CONFIG = DepthConfig()


# Table 12 has them in millions; by hand: ConvT + GN + ConvT + GN + BN + Conv3x3.
@pytest.mark.parametrize(("width", "counted"), [(384, 345_537), (768, 1_280_001), (1024, 2_230_657)])
def test_parameters(width, counted):
    count = sum(parameter.numel() for parameter in DepthDecoder(width, CONFIG, 2.5).parameters())
    half = width // 2
    assert count == counted == (width * half * 4 + half) + 2 * half + (half * 64 * 4 + 64) + 128 + 128 + (64 * 9 + 1)


def test_the_decoder_equals_the_release():
    torch.manual_seed(0)
    decoder = DepthDecoder(64, CONFIG, 2.5).eval()
    x = torch.randn(2, 64, 3, 5)
    layers = nn.Sequential(
        decoder.up1, nn.GroupNorm(32, 32), nn.GELU(), decoder.up2, nn.GroupNorm(32, 64), nn.GELU(), decoder.last_norm
    )
    expected = torch.relu(decoder.regress(layers(x))) + 1e-3
    assert decoder(x).shape == (2, 1, 12, 20)
    assert torch.allclose(decoder(x), expected, atol=1e-6)


@pytest.mark.parametrize("decoder", [DepthDecoder, LinearDepthDecoder])
def test_initial_output_is_the_start_depth_with_gradients(decoder):
    torch.manual_seed(0)
    model = decoder(64, CONFIG, 4.0)
    depth = model(torch.randn(4, 64, 8, 8)).detach()
    assert float(depth.mean()) == pytest.approx(4.0, abs=0.3)
    assert float((depth > 1e-3).float().mean()) > 0.99, "pixels at the ReLU's zero do not learn"


@pytest.mark.parametrize("smooth", [False, True])
def test_smooth_upsampling_removes_the_patch_grid(smooth):
    torch.manual_seed(0)
    decoder = DepthDecoder(64, dataclasses.replace(CONFIG, smooth_upsampling=smooth), 2.5)
    nn.init.normal_(decoder.norm1.bias)  # also after training
    noise_BDhw = 0.01 * torch.randn(2, 64, 6, 6)  # batch norm's variance must not be zero
    depth = decoder(torch.randn(1, 64, 1, 1) + noise_BDhw)[:, 0, 4:-4, 4:-4].detach()
    tile_44 = depth.unflatten(2, (4, 4)).unflatten(1, (4, 4)).mean((0, 1, 3))
    share = float(tile_44.var(correction=0) / depth.var(correction=0))
    assert share < 0.1 if smooth else share > 0.9


@pytest.mark.parametrize("decoder", [DepthDecoder, LinearDepthDecoder])
def test_output_is_float32_in_every_precision(decoder):
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        depth = decoder(64, CONFIG, 2.5)(torch.randn(1, 64, 4, 4).bfloat16())
    assert depth.dtype == torch.float32
    assert not torch.equal(depth, depth.bfloat16().float())


def test_group_norm_works_with_one_image():
    decoder = DepthDecoder(64, dataclasses.replace(CONFIG, decoder_norm="group"), 2.5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in decoder.modules())


def test_output_is_clamped_to_the_range_in_eval():
    bounded = Meters(dataclasses.replace(CONFIG, min_depth=0.5, max_depth=10.0))
    x = torch.tensor([-3.0, 0.0, 2.0, 9.5, 40.0], requires_grad=True)
    assert bounded.eval()(x).tolist() == [0.5, 0.5, 2.5, 10.0, 10.0]
    assert float(Meters(CONFIG).eval()(x.detach())[-1]) == pytest.approx(40.001)
    # In training the gradient outside the range is not zero.
    bounded.train()(x)[-1].backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0, 0, 1]
