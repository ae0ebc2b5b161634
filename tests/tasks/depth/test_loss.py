import numpy as np
import pytest
import torch

from vitsplit.tasks.depth.loss import silog_sum
from vitsplit.types import Padding

NONE = Padding()
RNG = np.random.default_rng(0)


def brute_force(depth, truth, focus=0.15):
    """The release's formula in float64, over all valid pixels at once."""
    valid = truth > 0
    g = np.log(depth[valid] + 1e-3) - np.log(truth[valid] + 1e-3)
    return np.sqrt(g.var(ddof=1) + focus * g.mean() ** 2)


def maps(batch=3, size=(5, 7), invalid=0.3):
    depth = RNG.uniform(0.5, 9.0, (batch, *size))
    truth = RNG.uniform(0.5, 9.0, (batch, *size))
    truth[RNG.random(truth.shape) < invalid] = 0
    return depth, truth


def silog(depth, truth, padding=NONE, pad="crop", focus=0.15):
    return silog_sum(torch.tensor(depth).float()[:, None], torch.tensor(truth).float(), padding, pad, focus)


@pytest.mark.parametrize("focus", [0.0, 0.15, 1.0])
def test_equals_brute_force(focus):
    depth, truth = maps()
    valid = (truth > 0).sum()
    assert float(silog(depth, truth, focus=focus)) / valid == pytest.approx(brute_force(depth, truth, focus), rel=1e-5)


def test_a_depth_difference_between_images_adds_variance():
    depth = np.ones((2, 4, 4))
    truth = np.stack([np.ones((4, 4)), np.full((4, 4), 2.0)])
    g = np.log(1.001) - np.log(2.001)
    expected = np.sqrt(32 / 31 * (g / 2) ** 2 + 0.15 * (g / 2) ** 2)
    assert float(silog(depth, truth)) / 32 == pytest.approx(expected, rel=1e-5)


def test_micro_batches_are_weighted_by_valid_pixels():
    depth, truth = maps(batch=4)
    truth[0, :3] = 0
    counts = [(truth[part] > 0).sum() for part in (slice(0, 1), slice(1, 4))]
    expected = sum(
        count * brute_force(depth[part], truth[part])
        for count, part in zip(counts, (slice(0, 1), slice(1, 4)), strict=True)
    )
    assert float(silog(depth[:1], truth[:1]) + silog(depth[1:], truth[1:])) == pytest.approx(expected, rel=1e-5)


def test_padding_is_cropped_or_stretched():
    padding = Padding(left=1, top=2, right=3, bottom=1)
    depth, truth = RNG.uniform(1, 9, (2, 8, 11)), RNG.uniform(1, 9, (2, 5, 7))
    valid = truth.size
    inside = depth[:, 2:7, 1:8]
    assert float(silog(depth, truth, padding)) / valid == pytest.approx(brute_force(inside, truth), rel=1e-5)
    flat = np.full((2, 8, 11), 3.0)
    flat[:, 0] = 9.0  # in the padding above, which only stretching brings into the image
    assert float(silog(flat, truth, padding)) / valid == pytest.approx(brute_force(flat[:, 2:7, 1:8], truth), rel=1e-5)
    assert float(silog(flat, truth, padding, "stretch")) != pytest.approx(float(silog(flat, truth, padding)), rel=1e-3)


def test_the_output_is_enlarged_bilinearly():
    # Halfway between two values twice as coarse: 1/4 and 3/4 of the way, the ends as they are.
    truth = RNG.uniform(1, 9, (1, 4, 4))
    row = np.array([2.0, 2.5, 3.5, 4.0])
    expected = brute_force(np.broadcast_to(row, (1, 4, 4)), truth)
    assert float(silog(np.array([[[2.0, 4.0], [2.0, 4.0]]]), truth)) / 16 == pytest.approx(expected, rel=1e-5)


def test_gradient_equals_finite_differences():
    depth, truth = maps(batch=1, size=(3, 4))
    valid = (truth > 0).sum()
    x = torch.tensor(depth).float()[:, None].requires_grad_()
    silog_sum(x, torch.tensor(truth).float(), NONE, "crop", 0.15).backward()
    for place in np.ndindex(depth.shape):
        step = np.zeros_like(depth)
        step[place] = 1e-5
        slope = (brute_force(depth + step, truth) - brute_force(depth - step, truth)) / 2e-5 * valid
        assert float(x.grad[place[0], 0, place[1], place[2]]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    "truth",
    [np.zeros((1, 2, 3)), np.full((1, 2, 3), 4.0), np.eye(3)[None, :2] * 0 + np.array([[[4.0, 0, 0], [0, 0, 0]]])],
    ids=["nothing valid", "perfect", "one pixel"],
)
def test_extremes_have_finite_gradients(truth):
    x = torch.full((1, 1, 2, 3), 4.0, requires_grad=True)
    loss = silog_sum(x, torch.tensor(truth).float(), NONE, "crop", 0.15)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-4)
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())


def test_half_precision_outputs_are_scored_in_float32():
    depth, truth = maps()
    half = torch.tensor(depth).bfloat16()
    expected = brute_force(half.double().numpy(), truth) * (truth > 0).sum()
    with torch.autocast("cpu", torch.bfloat16):
        loss = silog_sum(half[:, None], torch.tensor(truth).float(), NONE, "crop", 0.15)
    assert loss.dtype == torch.float32 and float(loss) == pytest.approx(expected, rel=1e-5)
