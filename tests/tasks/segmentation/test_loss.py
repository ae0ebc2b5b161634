import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitsplit.data.classes import ClassList, default_colors
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import SegmentationBatch
from vitsplit.tasks.segmentation.loss import IGNORE, cross_entropy_sum, dice_sum, resize_logits
from vitsplit.tasks.segmentation.task import SegmentationTask
from vitsplit.types import LayerTaps, Padding

PADDING = Padding(left=1, top=2, right=2, bottom=2)
SIZE = (24, 25)  # padded to 28 x 28
CLASSES = 5


def _logits(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(3, CLASSES, 7, 7, generator=generator)).to(dtype).requires_grad_()


def _mask(ignored: float = 0.3):
    """Uneven: image 0 has no pixel of class 4, image 2 is almost all ignored."""
    generator = torch.Generator().manual_seed(1)
    mask_BHW = torch.randint(0, CLASSES, (3, *SIZE), generator=generator, dtype=torch.uint8)
    mask_BHW[torch.rand(mask_BHW.shape, generator=generator) < ignored] = IGNORE
    mask_BHW[0][mask_BHW[0] == 4] = 1
    mask_BHW[2, :, 3:] = IGNORE
    return mask_BHW


def _resized(logits_BKhw, pad):
    """The whole batch at once, as a plain implementation does it."""
    if pad == "stretch":
        return F.interpolate(logits_BKhw, size=SIZE, mode="bilinear", align_corners=False)
    full = F.interpolate(logits_BKhw, size=(28, 28), mode="bilinear", align_corners=False)
    return full[:, :, 2 : 2 + 24, 1 : 1 + 25]


def _value_and_gradient(loss, logits_BKhw):
    value = loss(logits_BKhw)
    (gradient,) = torch.autograd.grad(3.0 * value, logits_BKhw)
    return value.detach(), gradient


@pytest.mark.parametrize("pad", ["crop", "stretch"])
def test_resizing_undoes_the_padding(pad):
    resized = resize_logits(_logits(), SIZE, PADDING, pad)
    assert resized.shape == (3, CLASSES, *SIZE)
    torch.testing.assert_close(resized, _resized(_logits(), pad))


def test_cropped_logits_are_aligned_with_the_pixels():
    """A ramp over the padded image: the logit of an image's pixel is the pixel's own position."""
    padded_x = (torch.arange(28) + 0.5).clamp(2, 26)  # bilinear enlargement by 4 is exact inside, constant at the rim
    ramp = F.avg_pool2d((torch.arange(28) + 0.5).expand(1, 1, 28, 28), 4)
    expected = padded_x[1 : 1 + 25].expand(SIZE)
    torch.testing.assert_close(resize_logits(ramp, SIZE, PADDING, "crop")[0, 0], expected)
    assert not torch.allclose(resize_logits(ramp, SIZE, PADDING, "stretch")[0, 0], expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pad", ["crop", "stretch"])
def test_cross_entropy_equals_pytorch_with_gradients(pad, weighted):
    weights_K = torch.tensor([1.0, 0.2, 3.0, 0.0, 1.7]) if weighted else None
    mask_BHW = _mask()
    ours = _value_and_gradient(lambda x: cross_entropy_sum(x, mask_BHW, PADDING, pad, weights_K), _logits())
    plain = _value_and_gradient(
        lambda x: F.cross_entropy(_resized(x, pad), mask_BHW.long(), weights_K, ignore_index=IGNORE, reduction="sum"),
        _logits(),
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "size"), [((37, 9), (148, 36)), ((33, 6), (131, 20)), ((90, 5), (140, 5))])
def test_strips_do_not_change_the_loss(grid, size):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, CLASSES, *grid, generator=generator)).requires_grad_()
    mask_BHW = torch.randint(0, CLASSES, (2, *size), generator=generator)
    ours = _value_and_gradient(lambda x: cross_entropy_sum(x, mask_BHW, Padding(), "stretch", None), logits)
    plain = _value_and_gradient(
        lambda x: F.cross_entropy(F.interpolate(x, size=size, mode="bilinear"), mask_BHW, reduction="sum"), logits
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_fully_ignored_images_do_not_contribute():
    mask_BHW = _mask()
    mask_BHW[1] = IGNORE
    for loss in (cross_entropy_sum, dice_sum):
        extra = (None,) if loss is cross_entropy_sum else ()
        value, gradient = _value_and_gradient(lambda x, f=loss, e=extra: f(x, mask_BHW, PADDING, "crop", *e), _logits())
        without, _ = _value_and_gradient(
            lambda x, f=loss, e=extra: f(x[::2], mask_BHW[::2], PADDING, "crop", *e), _logits()
        )
        torch.testing.assert_close(value, without)
        assert torch.equal(gradient[1], torch.zeros_like(gradient[1])) and gradient[0].abs().max() > 0
        all_ignored, zero = _value_and_gradient(
            lambda x, f=loss, e=extra: f(x, torch.full_like(mask_BHW, IGNORE), PADDING, "crop", *e), _logits()
        )
        assert all_ignored == 0 and torch.equal(zero, torch.zeros_like(zero))


def test_bfloat16_logits_are_scored_in_float32():
    mask_BHW = _mask()
    value, gradient = _value_and_gradient(
        lambda x: cross_entropy_sum(x, mask_BHW, PADDING, "crop", None), _logits(torch.bfloat16)
    )
    exact_logits = _logits(torch.bfloat16).detach().float().requires_grad_()
    exact = _value_and_gradient(
        lambda x: F.cross_entropy(_resized(x, "crop"), mask_BHW.long(), ignore_index=IGNORE, reduction="sum"),
        exact_logits,
    )
    assert value.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    torch.testing.assert_close(value, exact[0], rtol=1e-5, atol=0)
    assert (gradient.float() - exact[1]).norm() < 0.01 * exact[1].norm()


class _Saved:
    """A tensor saved by a graph and freed with it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_no_full_resolution_tensor_is_saved_for_backward():
    refs: list[weakref.ref[_Saved]] = []

    def pack(tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        refs.append(weakref.ref(saved))
        return saved

    logits = _logits()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        loss = cross_entropy_sum(logits, _mask(), PADDING, "crop", None)
    kept = [saved.tensor.numel() for saved in (ref() for ref in refs) if saved is not None]
    assert kept == [logits.numel()]
    loss.backward()


def test_value_is_equal_without_gradients():
    mask_BHW = _mask()
    expected = cross_entropy_sum(_logits(), mask_BHW, PADDING, "crop", None).detach()
    with torch.no_grad():
        assert torch.equal(cross_entropy_sum(_logits(), mask_BHW, PADDING, "crop", None), expected)
    assert torch.equal(cross_entropy_sum(_logits().detach(), mask_BHW, PADDING, "crop", None), expected)


def _dice_by_loops(logits_BKHW: np.ndarray, mask_BHW: np.ndarray) -> float:
    total = 0.0
    for logits_KHW, mask_HW in zip(logits_BKHW.astype(np.float64), mask_BHW, strict=True):
        shares = np.exp(logits_KHW - logits_KHW.max(axis=0))
        shares /= shares.sum(axis=0)
        valid = mask_HW != IGNORE
        dice = []
        for k in range(CLASSES):
            truth = (mask_HW == k) & valid
            if truth.any():
                dice.append(2 * shares[k][truth].sum() / (shares[k][valid].sum() + truth.sum()))
        total += 1 - float(np.mean(dice))
    return total


@pytest.mark.parametrize("pad", ["crop", "stretch"])
def test_dice_equals_brute_force(pad):
    expected = _dice_by_loops(_resized(_logits(), pad).detach().numpy(), _mask().numpy())
    assert dice_sum(_logits(), _mask(), PADDING, pad).item() == pytest.approx(expected, rel=1e-5)


def test_dice_gradient_equals_finite_differences():
    mask_BHW, logits = _mask(), _logits()
    _, gradient = _value_and_gradient(lambda x: dice_sum(x, mask_BHW, PADDING, "crop"), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    step = 0.05
    ahead, behind = (
        _dice_by_loops(_resized(logits.detach() + sign * step * direction, "crop").numpy(), mask_BHW.numpy())
        for sign in (1, -1)
    )
    expected = 3.0 * (ahead - behind) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-2)


def test_dice_gradient_does_not_underflow_in_float16():
    """It is a mean over many pixels, and float16 underflows at 6e-8: the loss scale must be applied first."""
    generator = torch.Generator().manual_seed(0)
    logits_BKhw = torch.randn(1, CLASSES, 96, 96, generator=generator).half()
    mask_BHW = torch.randint(0, CLASSES, (1, 384, 384), generator=generator, dtype=torch.uint8)
    gradients = []
    for dtype in (torch.float16, torch.float32):
        leaf = logits_BKhw.to(dtype).clone().requires_grad_()
        (65536 * dice_sum(leaf, mask_BHW, Padding(0, 0, 0, 0), "resize")).backward()
        gradients.append(leaf.grad.float())
    half, full = gradients
    assert full.abs().median() / 65536 < 1e-5
    assert (half - full).norm() < 1e-3 * full.norm()


def test_loss_of_a_perfect_prediction_is_zero():
    mask_BHW = torch.zeros(1, 8, 8, dtype=torch.uint8)
    mask_BHW[:, :, 4:] = 2
    logits = 200.0 * F.one_hot(mask_BHW.long(), CLASSES).permute(0, 3, 1, 2).float()
    assert cross_entropy_sum(logits, mask_BHW, Padding(), "crop", None).item() == pytest.approx(0, abs=1e-4)
    assert dice_sum(logits, mask_BHW, Padding(), "crop").item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("average", ["valid", "all"])
def test_average_over_valid_or_all_pixels(average, weighted):
    """mmseg 0.20: ``F.cross_entropy(..., reduction="none", ignore_index=255).mean()``, for any sum of the weights."""
    classes = ClassList(names=tuple("abcde"), colors=default_colors(CLASSES))
    task = SegmentationTask(SegmentationConfig(loss_average=average), classes)
    weights_K = task.class_weights_K = torch.tensor([1.0, 0.2, 3.0, 0.0, 1.7]) if weighted else None
    logits_BKhw, mask_BHW = _logits().detach(), _mask()
    taps = LayerTaps(SIZE, PADDING, (7, 7), 1)

    def batch(mask_BHW):
        return SegmentationBatch(torch.zeros(len(mask_BHW), 3, *SIZE), mask_BHW, ["x"] * len(mask_BHW))

    def loss(*parts):
        """As a step has it: sums over micro-batches, and normalizers over them, added up before they are divided."""
        sums = [task.loss_sums(logits_BKhw[part], batch(mask_BHW[part]), taps)["cross_entropy"] for part in parts]
        normalizers = [task.normalizers(batch(mask_BHW[part]))["cross_entropy"] for part in parts]
        assert {each.dtype for each in normalizers} == {torch.float64}
        return float(sum(sums)) / float(sum(normalizers))

    full = _resized(logits_BKhw, "crop")
    reduction = {"valid": "mean", "all": "none"}[average]
    expected = F.cross_entropy(full, mask_BHW.long(), weights_K, ignore_index=IGNORE, reduction=reduction).mean()
    assert loss(slice(None)) == pytest.approx(float(expected), rel=1e-5)
    assert loss(slice(0, 1), slice(1, 3)) == pytest.approx(float(expected), rel=1e-5)
