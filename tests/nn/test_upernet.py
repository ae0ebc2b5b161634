"""UperNet against transformers' own, its pooling against pooling by hand, and its loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitsplit.data.classes import ClassList, default_colors
from vitsplit.errors import ConfigError
from vitsplit.nn.upernet import CHANNELS, ConvNorm, PyramidPooling, UperNet, WithAuxiliary
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import SegmentationBatch
from vitsplit.tasks.segmentation.task import SegmentationTask
from vitsplit.types import LayerTaps, Padding

WIDTH, CLASSES = 32, 5
STRIDES_4_TO_32 = ((16, 24), (8, 12), (4, 6), (2, 3))
ONE_SCALE = ((5, 7),) * 4


def four_maps(sizes, batch=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, WIDTH, *size, generator=generator) for size in sizes]


def randomized(module):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif "norm" in name and tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return module


def copy_conv(theirs, ours: ConvNorm):
    theirs.conv.load_state_dict(ours.conv.state_dict())
    theirs.batch_norm.load_state_dict(ours.norm.state_dict())


@pytest.mark.parametrize("sizes", [STRIDES_4_TO_32, ONE_SCALE], ids=["pyramid", "one scale"])
def test_equals_transformers(sizes):
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    from transformers import ResNetConfig, UperNetConfig

    config = UperNetConfig(
        backbone_config=ResNetConfig(),
        hidden_size=CHANNELS,
        pool_scales=[1, 2, 3, 6],
        num_labels=CLASSES,
        auxiliary_in_channels=WIDTH,
        auxiliary_channels=256,
        auxiliary_num_convs=1,
        auxiliary_concat_input=False,
    )
    ours = randomized(UperNet(WIDTH, CLASSES)).eval()
    theirs = upernet.UperNetHead(config, [WIDTH] * 4).eval()
    auxiliary = upernet.UperNetFCNHead(config, [WIDTH] * 4, in_index=2).eval()
    for scale, reduce in zip(theirs.psp_modules.blocks, ours.pooling.reduce, strict=True):
        copy_conv(scale.layers[1], reduce)
    copy_conv(theirs.bottleneck, ours.pooling.mix)
    for index in range(3):
        copy_conv(theirs.lateral_convs[index], ours.laterals[index])
        copy_conv(theirs.fpn_convs[index], ours.smooth[index])
    copy_conv(theirs.fpn_bottleneck, ours.merge)
    theirs.classifier.load_state_dict(ours.classify.state_dict())
    copy_conv(auxiliary.convs[0], ours.auxiliary[0])
    auxiliary.classifier.load_state_dict(ours.auxiliary[2].state_dict())
    maps = four_maps(sizes)
    with torch.no_grad():
        out = ours(maps)
        assert out.shape == (2, CLASSES, *sizes[0])
        torch.testing.assert_close(out, theirs(maps), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.auxiliary(maps[2]), auxiliary(maps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (12, 6)])
def test_pooling_equals_brute_force(size):
    """Cell i of s covers rows floor(i h / s) to ceil((i + 1) h / s)."""
    pooling = PyramidPooling(WIDTH, "group")
    seen = []
    for reduce in pooling.reduce:
        reduce.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (map_BDhw,) = four_maps([size])
    pooling(map_BDhw)
    height, width = size
    for s, pooled in zip((1, 2, 3, 6), seen, strict=True):
        for i in range(s):
            for j in range(s):
                rows = slice(i * height // s, math.ceil((i + 1) * height / s))
                columns = slice(j * width // s, math.ceil((j + 1) * width / s))
                cell_BD = map_BDhw[:, :, rows, columns].mean((2, 3))
                torch.testing.assert_close(pooled[:, :, i, j], cell_BD)


def test_group_norm_has_no_running_statistics():
    upernet = UperNet(WIDTH, CLASSES, norm="group")
    assert not [module for module in upernet.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not list(upernet.buffers())
    sizes = sum(p.numel() for p in upernet.parameters()), sum(p.numel() for p in UperNet(WIDTH, CLASSES).parameters())
    assert sizes[0] == sizes[1]


def test_a_batch_of_one_is_rejected_with_batch_norm():
    with pytest.raises(ConfigError, match=r"--decoder-norm group"):
        UperNet(WIDTH, CLASSES)(four_maps(ONE_SCALE, batch=1))
    UperNet(WIDTH, CLASSES, norm="group")(four_maps(ONE_SCALE, batch=1))
    UperNet(WIDTH, CLASSES).eval()(four_maps(ONE_SCALE, batch=1))


def test_the_auxiliary_head_is_only_in_training():
    upernet = UperNet(WIDTH, CLASSES)
    calls = []
    upernet.auxiliary.register_forward_hook(lambda *_: calls.append(1))
    out = upernet(four_maps(STRIDES_4_TO_32))
    assert isinstance(out, WithAuxiliary)
    assert out.logits.shape == (2, CLASSES, 16, 24) and out.auxiliary.shape == (2, CLASSES, 4, 6)
    assert torch.is_tensor(upernet.eval()(four_maps(STRIDES_4_TO_32))) and len(calls) == 1


def test_the_auxiliary_loss_has_weight_0_4():
    classes = ClassList(names=tuple("abcde"), colors=default_colors(CLASSES))
    task = SegmentationTask(SegmentationConfig(dice_weight=0.5), classes)
    generator = torch.Generator().manual_seed(3)
    logits, auxiliary = (torch.randn(2, CLASSES, size, size, generator=generator) for size in (8, 4))
    mask_BHW = torch.randint(0, CLASSES, (2, 16, 16), generator=generator).to(torch.uint8)
    mask_BHW[0, 0, :5] = 255
    batch = SegmentationBatch(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), mask_BHW, ["a", "b"])
    taps = LayerTaps(image_size=(16, 16), padding=Padding(), grid=(1, 1), num_prefix_tokens=0)

    def by_torch(values):
        full = F.interpolate(values, size=(16, 16), mode="bilinear", align_corners=False)
        return F.cross_entropy(full, mask_BHW.long(), ignore_index=255, reduction="sum")

    terms = task.loss_sums(WithAuxiliary(logits, auxiliary), batch, taps)
    expected = by_torch(logits) + 0.4 * by_torch(auxiliary)
    torch.testing.assert_close(terms["cross_entropy"], expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(terms["dice"], task.loss_sums(logits, batch, taps)["dice"])
    assert terms.keys() == task.normalizers(batch).keys()


def test_dropout_default_is_the_published_value():
    classes = ClassList(names=tuple("abcde"), colors=default_colors(CLASSES))
    for given, upernet, own in ((None, 0.1, 0.0), (0.0, 0.0, 0.0), (0.3, 0.3, 0.3)):
        task = SegmentationTask(SegmentationConfig(dropout=given), classes)
        decoder = task.build_decoder("upernet", WIDTH, 14)
        assert [m.p for m in decoder.modules() if isinstance(m, nn.Dropout2d)] == [upernet, upernet]
        assert [m.p for m in task.build_decoder("linear", WIDTH, 14).modules() if isinstance(m, nn.Dropout2d)] == [own]
