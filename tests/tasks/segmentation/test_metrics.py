import math

import numpy as np
import pytest
import torch

from vitsplit.tasks.segmentation.metrics import SegmentationMetrics, confusion

IGNORE, CLASSES = 255, 6
NAMES = tuple("abcdef")


def _masks(count=4, seed=0):
    """Class 4 is absent, class 5 is only predicted, class 3 is only in the ground truth."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 3, IGNORE], size=(count, 20, 23), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice([0, 1, 2, 5], size=truth.shape))
    predicted = np.where((predicted == IGNORE) | (predicted == 3), 1, predicted).astype(np.uint8)
    return predicted, truth


def _summed(predicted, truth):
    return sum(
        confusion(torch.from_numpy(p), torch.from_numpy(t), CLASSES) for p, t in zip(predicted, truth, strict=True)
    )


def test_confusion_matrix_counts_pixels():
    predicted, truth = _masks()
    expected = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for p, t in zip(predicted.flatten(), truth.flatten(), strict=True):
        if t != IGNORE:
            expected[t, p] += 1
    counts = _summed(predicted, truth)
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected.tolist()


def test_metrics_equal_an_independent_count():
    predicted, truth = _masks()
    metrics = SegmentationMetrics.from_confusion(_summed(predicted, truth))
    valid = truth != IGNORE
    iou, accuracy = [], []
    for k in range(CLASSES):
        in_truth, in_prediction = (truth == k) & valid, (predicted == k) & valid
        union = (in_truth | in_prediction).sum()
        iou.append(None if union == 0 else (in_truth & in_prediction).sum() / union)
        accuracy.append(None if not in_truth.any() else (in_truth & in_prediction).sum() / in_truth.sum())
    assert metrics.iou[4] is None and metrics.iou[5] == 0 and metrics.iou[3] == 0
    assert metrics.accuracy[4] is None and metrics.accuracy[5] is None and metrics.accuracy[3] == 0
    assert metrics.iou == pytest.approx(tuple(iou))
    assert metrics.accuracy == pytest.approx(tuple(accuracy))
    assert metrics.miou == pytest.approx(np.mean([value for value in iou if value is not None]))
    assert metrics.mean_accuracy == pytest.approx(np.mean([value for value in accuracy if value is not None]))
    assert metrics.pixel_accuracy == pytest.approx((predicted == truth)[valid].mean())
    assert metrics.share == pytest.approx([(truth[valid] == k).mean() for k in range(CLASSES)])


def test_metrics_are_over_the_set_not_per_image():
    predicted, truth = _masks()
    together = SegmentationMetrics.from_confusion(_summed(predicted, truth))
    singly = [
        SegmentationMetrics.from_confusion(_summed(predicted[i : i + 1], truth[i : i + 1])).miou for i in range(4)
    ]
    assert together.miou != pytest.approx(float(np.mean(singly)), abs=1e-6)


def test_perfect_prediction_has_score_one():
    truth = torch.tensor([[0, 1], [1, IGNORE]], dtype=torch.uint8)
    metrics = SegmentationMetrics.from_confusion(confusion(truth.clamp(max=1), truth, 2))
    assert (metrics.miou, metrics.pixel_accuracy, metrics.mean_accuracy) == (1.0, 1.0, 1.0)


def test_json_names_the_classes_and_has_no_nan():
    entry = SegmentationMetrics.from_confusion(_summed(*_masks())).to_dict(NAMES)
    assert list(entry["classes"]) == list(NAMES)
    assert entry["classes"]["e"] == {"iou": None, "accuracy": None, "share": 0.0}
    assert not any(isinstance(v, float) and math.isnan(v) for row in entry["classes"].values() for v in row.values())


def test_counts_are_exact_beyond_float32():
    counts = torch.tensor([[2**40, 1], [0, 2**40]])
    metrics = SegmentationMetrics.from_confusion(counts)
    assert metrics.iou[0] == 2**40 / (2**40 + 1) != 1.0
