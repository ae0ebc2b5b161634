import numpy as np
import pytest
import torch

from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.metrics import METRICS, crop_box, depth_metrics, measure

RNG = np.random.default_rng(0)


def from_the_equations(d, t):
    """Eigen et al. 2014 and Table 11's metrics, pixel by pixel."""
    n = len(d)
    g = [np.log(a) - np.log(b) for a, b in zip(d, t, strict=True)]
    return {
        "rmse": (sum((a - b) ** 2 for a, b in zip(d, t, strict=True)) / n) ** 0.5,
        "abs_rel": sum(abs(a - b) / b for a, b in zip(d, t, strict=True)) / n,
        "log10": sum(abs(np.log10(a) - np.log10(b)) for a, b in zip(d, t, strict=True)) / n,
        **{f"delta{k}": sum(max(a / b, b / a) < 1.25**k for a, b in zip(d, t, strict=True)) / n for k in (1, 2, 3)},
        "sq_rel": sum((a - b) ** 2 / b for a, b in zip(d, t, strict=True)) / n,
        "rmse_log": (sum(x**2 for x in g) / n) ** 0.5,
        "silog": 100 * (sum(x**2 for x in g) / n - (sum(g) / n) ** 2) ** 0.5,
    }


def maps(size=(6, 9)):
    return RNG.uniform(0.5, 12.0, size), RNG.uniform(0.5, 12.0, size)


def measured(depth, truth, **settings):
    values = measure(torch.tensor(depth).float(), torch.tensor(truth).float(), DepthConfig(**settings))
    return None if values is None else dict(zip(METRICS, values.tolist(), strict=True))


def test_metrics_equal_their_equations():
    depth, truth = (x.ravel() for x in maps())
    values = depth_metrics(torch.tensor(depth), torch.tensor(truth))
    expected = from_the_equations(depth, truth)
    assert set(METRICS) == set(expected)
    assert dict(zip(METRICS, values.tolist(), strict=True)) == pytest.approx(expected, rel=1e-9)


def test_a_perfect_prediction():
    values = measured(*[maps()[1]] * 2)
    assert values is not None
    assert [values[f"delta{k}"] for k in (1, 2, 3)] == [1, 1, 1]
    assert [values[name] for name in METRICS if not name.startswith("delta")] == pytest.approx([0] * 6, abs=1e-6)


def test_only_valid_pixels_in_range_count_and_predictions_are_clamped():
    depth, truth = maps()
    truth[0], depth[1, 0] = 0, 30.0
    valid = (truth > 0.001) & (truth < 10.0)
    expected = from_the_equations(np.clip(depth, 0.001, 10.0)[valid], truth[valid])
    assert measured(depth, truth, max_depth=10.0) == pytest.approx(expected, rel=1e-5)
    assert measured(depth, np.zeros_like(truth)) is None
    assert measured(depth, truth + 12, max_depth=10.0) is None


def test_median_scaling():
    depth, truth = maps((5, 7))
    scaled = depth * np.median(truth) / np.median(depth)
    expected = from_the_equations(scaled.ravel(), truth.ravel())
    assert measured(depth, truth, median_scaling=True) == pytest.approx(expected, rel=1e-5)
    far = measured(3 * truth, truth, median_scaling=True)
    assert far is not None and far["rmse"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("crop", "size", "box"),
    [
        ("none", (480, 640), (0, 0, 480, 640)),
        # The release: eval_mask[45:471, 41:601].
        ("nyu-eigen", (480, 640), (45, 41, 471, 601)),
        # Half as large: 22.5, 20.5, 235.5 and 300.5, to the nearest pixel (ties to even).
        ("nyu-eigen", (240, 320), (22, 20, 236, 300)),
        # The benchmark's window on the images of 2011_09_26: 375 - 352 and (1242 - 1216) / 2.
        ("kb", (375, 1242), (23, 13, 375, 1229)),
        ("kb", (370, 1224), (18, 4, 370, 1220)),
        ("kb", (200, 600), (0, 0, 200, 600)),
        # Rows 0.40810811 * 375 = 153.04 and 371.96; columns 0.03594771 * 1242 = 44.6 and 1197.4.
        ("garg", (375, 1242), (153, 44, 371, 1197)),
        # Rows 0.3324324 * 375 = 124.7 and 0.91351351 * 375 = 342.6.
        ("kitti-eigen", (375, 1242), (124, 44, 342, 1197)),
    ],
)
def test_public_crops(crop, size, box):
    assert crop_box(crop, size) == box


def test_pixels_outside_the_crop_do_not_count():
    truth = RNG.uniform(1.0, 9.0, (48, 64))
    depth = truth.copy()
    top, left, bottom, right = crop_box("nyu-eigen", (48, 64))
    depth[:top] *= 2
    depth[bottom:] *= 2
    depth[:, :left] *= 2
    depth[:, right:] *= 2
    inside = measured(depth, truth, eval_crop="nyu-eigen")
    everywhere = measured(depth, truth)
    assert inside is not None and everywhere is not None
    assert inside["abs_rel"] == pytest.approx(0, abs=1e-6) and everywhere["abs_rel"] > 0.1
