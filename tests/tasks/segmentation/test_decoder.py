import pytest
import torch
import torch.nn.functional as F

from vitsplit.nn.pointwise import NormedPointwise
from vitsplit.tasks.segmentation.decoder import SegmentationDecoder


@pytest.mark.parametrize(
    ("width", "num_classes", "parameters"),
    [
        (384, 150, 1_240_470),
        (768, 150, 4_840_086),
        (1024, 150, 8_550_550),
        (1536, 150, 19_117_206),
        (384, 19, 1_190_035),
        (768, 19, 4_739_347),
        (1024, 19, 8_416_275),
        (768, 59, 4_770_107),
        (1024, 59, 8_457_275),
    ],
)
@pytest.mark.parametrize("last_norm", ["batch", "group"])
def test_parameters_equal_the_paper(width, num_classes, parameters, last_norm):
    with torch.device("meta"):
        decoder = SegmentationDecoder(width, num_classes, last_norm=last_norm)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters
    assert parameters == 8 * width**2 + 8 * width + num_classes * width + num_classes


def test_the_decoder_equals_the_release():
    torch.manual_seed(0)
    decoder = SegmentationDecoder(64, 7).train()
    fused_BDhw = torch.randn(3, 64, 4, 5)
    x = fused_BDhw
    for up, norm in ((decoder.up1, decoder.norm1), (decoder.up2, decoder.norm2)):
        x = F.gelu(F.group_norm(F.conv_transpose2d(x, up.weight, up.bias, stride=2), 32, norm.weight, norm.bias))
    x = F.batch_norm(x, None, None, decoder.last_norm.weight, decoder.last_norm.bias, training=True)
    expected = F.conv2d(x, decoder.classify.weight, decoder.classify.bias)
    out = decoder(fused_BDhw)
    assert out.shape == (3, 7, 16, 20)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_constant_map_has_the_grid_of_the_patches_unless_upsampling_is_smooth(smooth):
    torch.manual_seed(0)
    decoder = SegmentationDecoder(64, 5, smooth_upsampling=smooth).eval()
    logits_BKhw = decoder(torch.randn(1, 64, 1, 1).expand(1, 64, 3, 4))[..., 3:-3, 3:-3]  # without the borders
    assert (logits_BKhw.std(dim=(2, 3)).max() < 1e-5) == smooth


def test_group_norm_makes_images_independent_and_batch_norm_does_not():
    torch.manual_seed(0)
    fused_BDhw = torch.randn(2, 64, 4, 4)
    for last_norm, independent in (("group", True), ("batch", False)):
        decoder = SegmentationDecoder(64, 5, last_norm=last_norm).train()
        assert torch.allclose(decoder(fused_BDhw)[:1], decoder(fused_BDhw[:1]), atol=1e-5) is independent


def test_dropout_drops_whole_channels_in_training_only():
    torch.manual_seed(0)
    decoder = SegmentationDecoder(64, 64, dropout=0.5)
    torch.nn.init.eye_(decoder.classify.weight[..., 0, 0].data)
    with torch.no_grad():
        decoder.classify.weight.copy_(torch.eye(64)[..., None, None])
        decoder.classify.bias.zero_()
    out = decoder.train()(torch.randn(2, 64, 4, 4))
    dropped_BK = (out == 0).flatten(2).all(dim=2)
    assert 0.2 < dropped_BK.float().mean() < 0.8
    assert not (out == 0).flatten(2)[~dropped_BK].any()
    assert not (decoder.eval()(torch.randn(2, 64, 4, 4)) == 0).any()


def test_linear_probe_is_batch_norm_and_a_classifier():
    decoder = NormedPointwise(384, 150)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 2 * 384 + 384 * 150 + 150
    map_BDhw = torch.randn(2, 384, 3, 4)
    normed = F.batch_norm(map_BDhw, None, None, decoder.norm.weight, decoder.norm.bias, training=True)
    expected = F.conv2d(normed, decoder.classify.weight, decoder.classify.bias)
    torch.testing.assert_close(decoder.train()(map_BDhw), expected)
