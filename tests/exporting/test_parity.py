"""The measures and limits of the comparison, on arrays made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitsplit.errors import ExportError
from vitsplit.exporting.parity import LIMITS, distance, exceeds, measure, measure_objects, worst

FP32, FP16 = LIMITS["fp32"], LIMITS["fp16"]


def test_measures_of_each_kind() -> None:
    expected = np.array([[1.0, -4.0], [2.0, 8.0]], np.float32)
    got = expected + np.array([[0.0, 0.5], [0.0, 0.25]], np.float32)
    assert measure("logits", got, expected) == {
        "max_error": 0.5,
        "rms_error": pytest.approx(np.sqrt(0.3125) / 2),
        "largest": 8.0,
    }
    depth = np.abs(expected)
    assert measure("meters", depth * 1.5, depth) == {"max_error": 4.0, "abs_rel": 0.5}
    assert measure("classes", np.array([1, 2, 3, 3]), np.array([1, 2, 3, 0])) == {"agreement": 0.75}
    with pytest.raises(ExportError, match="shape"):
        measure("logits", got[:1], expected)


@pytest.mark.parametrize(
    ("errors", "limits", "accepted"),
    [
        ({"max_error": 9e-4, "rms_error": 1e-5, "largest": 3.0}, FP32, True),
        ({"max_error": 9e-4, "rms_error": 3e-5, "largest": 3.0}, FP32, False),
        ({"max_error": 2e-3, "rms_error": 1e-5, "largest": 3.0}, FP32, False),
        ({"max_error": 2e-3, "rms_error": 5e-5, "largest": 30.0}, FP32, True),
        ({"max_error": 4e-3, "rms_error": 5e-5, "largest": 30.0}, FP32, False),
        ({"max_error": float("nan"), "rms_error": 0.0, "largest": 3.0}, FP32, False),
        ({"max_error": 5.0, "rms_error": 1.0, "largest": 30.0}, FP16, True),
        ({"max_error": 9e-4, "abs_rel": 1e-5}, FP32, True),
        ({"max_error": 2e-3, "abs_rel": 1e-5}, FP32, False),
        ({"max_error": 0.5, "abs_rel": 1e-3}, FP16, True),
        ({"max_error": 0.5, "abs_rel": 3e-3}, FP16, False),
        ({"max_error": 0.5, "abs_rel": float("nan")}, FP16, False),
        ({"agreement": 0.996}, FP16, True),
        ({"agreement": 0.99}, FP16, False),
    ],
    ids=str,
)
def test_limits(errors: dict[str, float], limits: object, accepted: bool) -> None:
    assert (exceeds(errors, limits) is None) == accepted  # type: ignore[arg-type]


def test_the_worst_of_several_images() -> None:
    records = [{"agreement": 0.9, "max_error": 1.0}, {"agreement": 0.8, "max_error": 0.5}]
    assert worst(records) == {"agreement": 0.8, "max_error": 1.0}
    for first, second in ((0.1, float("nan")), (float("nan"), 0.1)):
        assert np.isnan(worst([{"abs_rel": first}, {"abs_rel": second}])["abs_rel"])


def objects(boxes: list[list[float]], labels: list[int], scores: list[float]) -> dict[str, np.ndarray]:
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels),
        "scores": np.array(scores, np.float32),
    }


def test_objects_agree_by_box_class_and_score() -> None:
    one = objects([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 1], [0.9, 0.5])
    assert measure_objects(one, one) == {"agreement": 1.0, "object_error": 0.0, "objects": 2.0}
    assert measure_objects(objects([], [], []), objects([], [], []))["agreement"] == 1.0
    assert measure_objects(objects([], [], []), one)["agreement"] == 0.0
    # In another order; then a box moved, a class changed, a score changed.
    swapped = objects([[20, 20, 40, 40], [0, 0, 10, 10]], [1, 0], [0.5, 0.9])
    assert measure_objects(swapped, one)["agreement"] == 1.0
    for other in (
        objects([[0, 0, 10, 8], [20, 20, 40, 40]], [0, 1], [0.9, 0.5]),
        objects([[0, 0, 10, 10], [20, 20, 40, 40]], [2, 1], [0.9, 0.5]),
        objects([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 1], [0.8, 0.5]),
    ):
        assert measure_objects(other, one)["agreement"] == 0.5


def test_masks_of_objects_are_compared() -> None:
    one = objects([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 1], [0.9, 0.5])
    one["masks"] = np.random.default_rng(0).random((2, 28, 28), np.float32)
    close, far, nan = (one["masks"].copy() for _ in range(3))
    close[1] += 0.02
    far[1] = 1 - far[1]
    nan[:] = np.nan
    found = measure_objects(one | {"masks": close}, one)
    assert found["agreement"] == 1.0
    assert found["object_error"] == pytest.approx(0.02, abs=1e-5)
    assert exceeds(found, LIMITS["fp32"]) is not None
    assert exceeds(found, LIMITS["bf16"]) is None
    assert measure_objects(one | {"masks": far}, one)["agreement"] == 0.5
    assert measure_objects(one | {"masks": nan}, one)["agreement"] == 0.0
    nothing = objects([], [], []) | {"masks": np.zeros((0, 28, 28), np.float32)}
    assert measure_objects(nothing, one)["agreement"] == measure_objects(one, nothing)["agreement"] == 0.0
    assert measure_objects(nothing, nothing)["agreement"] == 1.0


def test_distance_in_proportion_to_the_limits() -> None:
    limits = LIMITS["int8"]
    records = [
        {"outputs": {"a.logits": {"max_error": 9.0}, "a.classes": {"agreement": share}, "b.depth": {"abs_rel": error}}}
        for share, error in ((0.985, 0.004), (0.994, 0.01))
    ]
    assert distance(records, limits) == pytest.approx(0.5)  # both 1.5 of 3 % of the pixels and 1 of 2 %
    records[1]["outputs"]["b.depth"]["abs_rel"] = 0.03
    assert distance(records, limits) == pytest.approx(1.5)
    assert distance(records, limits, {"b"}) == pytest.approx(0.5)
    assert distance(records, limits, {"a", "b"}) == 0
    records[0]["outputs"]["b.depth"]["abs_rel"] = float("nan")
    assert np.isnan(distance(records, limits))
    assert measure("features", np.array([3.0, 4.0]), np.array([0.0, 4.0]))["relative_error"] == pytest.approx(0.75)
