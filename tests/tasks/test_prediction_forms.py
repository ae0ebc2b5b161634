"""Every form that the class of a prediction declares exists, with values of the declared types."""

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from vitsplit.data.classes import ClassList
from vitsplit.tasks import TASKS, task_config
from vitsplit.tasks.depth.prediction import DepthPrediction
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.tasks.prediction import Prediction
from vitsplit.tasks.segmentation.prediction import SegmentationPrediction
from vitsplit.tasks.vqa.prediction import VqaPrediction
from vitsplit.tasks.vqa.prompts import Turn

CLASSES = ClassList(("cup", "plate"))
IMAGE = np.full((20, 30, 3), 90, np.uint8)
BOXES = np.array([[2, 3, 12, 17], [1, 1, 9, 9]], np.float32)
LABELS, SCORES, BINS = np.array([1, 0]), np.array([0.9, 0.3], np.float32), np.ones((2, 28, 28), np.float32)
ASKED: Any = VqaPrediction(IMAGE, answerer=None)
ASKED.asked.append(Turn("how many?", "two"))
PREDICTIONS: dict[str, Prediction] = {
    "segmentation": SegmentationPrediction(
        np.eye(20, 30, dtype=np.uint8), CLASSES, IMAGE, np.ones((20, 30), np.float32)
    ),
    "depth": DepthPrediction(np.full((20, 30), 2.5, np.float32), IMAGE),
    "detection": DetectionPrediction(BOXES, LABELS, SCORES, BINS, CLASSES, (1, 2), IMAGE),
    "vqa": ASKED,
}
METHODS = {"json": "to_json", "png": "png", "npz": "arrays", "coco": "coco_results"}
VALUES = {
    "bytes": bytes,
    "number": float,
    "numbers": [float],
    "integers": [int],
    "texts": [str],
    "boxes": [[float]],
}


def is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return isinstance(value, list) and len(value) > 0 and all(is_of(each, kind[0]) for each in value)
    return isinstance(value, kind)


def test_all_built_in_tasks_are_here():
    assert PREDICTIONS.keys() == TASKS.built_in.keys()


@pytest.mark.parametrize("task", PREDICTIONS)
def test_declared_forms_exist(task):
    prediction, kind = PREDICTIONS[task], task_config(task).prediction_type()
    assert type(prediction) is kind
    for form in kind.served_formats:
        arguments = [7] if form == "coco" else []
        assert getattr(prediction, METHODS[form])(*arguments)
    assert ("npz" in kind.served_formats) == bool(kind.array_types)
    arrays = prediction.arrays()
    assert arrays.keys() == kind.array_types.keys()
    for name, (dtype, shape) in kind.array_types.items():
        assert arrays[name].dtype == dtype and arrays[name].ndim == len(shape)
        assert all(expected in (-1, side) for expected, side in zip(shape, arrays[name].shape, strict=True))
    record = prediction.record()
    assert record.keys() == kind.column_types.keys()
    for name, column in kind.column_types.items():
        assert is_of(record[name], VALUES[column])
    assert ("json" in kind.served_formats) == bool(kind.json_schema)
    for masks in ("rle", "png") if kind.json_schema else ():
        found = json.loads(json.dumps(prediction.to_json(masks)))
        Draft202012Validator(kind.json_schema | {"additionalProperties": False}).validate(found)


def test_boxes_alone_have_no_masks():
    prediction = DetectionPrediction(BOXES, LABELS, SCORES, None, CLASSES, (1, 2), IMAGE)
    assert prediction.arrays().keys() == {"boxes", "labels", "scores"} and prediction.record()["masks"] is None
