"""Objects from the outputs of a graph; the oracle is the task's prediction from the same objects in PyTorch."""

import numpy as np
import pytest
import torch

from vitsplit.errors import BundleError, ExportError
from vitsplit.tasks import bare_task
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import Detections, Limits
from vitsplit.tasks.detection.outputs import DetectionOutputs
from vitsplit.types import LayerTaps, Padding

CONFIG = DetectionConfig(image_scale=(80, 60), score_threshold=0.0)
DESCRIPTION = {"classes": ["cup", "plate"], "colours": [[9, 9, 9], [250, 0, 0]], "category_ids": [4, 11], "masks": True}
RNG = np.random.default_rng(0)


def objects(count=12):
    corners_N2 = RNG.uniform(-20, 70, (count, 2))
    boxes_N4 = np.concatenate([corners_N2, corners_N2 + RNG.uniform(0, 60, (count, 2))], 1).astype(np.float32)
    return {
        "boxes": boxes_N4,
        "scores": np.sort(RNG.random(count, dtype=np.float32))[::-1].copy(),
        "labels": RNG.integers(0, 2, count),
        "masks": RNG.random((count, 28, 28), dtype=np.float32),
    }


def test_predictions_are_those_of_the_task():
    image_HWC = RNG.integers(0, 256, (90, 130, 3), dtype=np.uint8)
    outputs, sizes = objects(), []
    found = {name: torch.from_numpy(value) for name, value in outputs.items()}
    task = bare_task(CONFIG, DESCRIPTION)

    def forward(image_BCHW):
        sizes.append(tuple(image_BCHW.shape[-2:]))
        detections = Detections(found["boxes"], found["labels"], found["scores"], found["masks"], Limits.of(CONFIG))
        return [detections], LayerTaps(sizes[-1], Padding(), (1, 1), 1)

    (expected,) = task.predict(forward, torch.from_numpy(image_HWC).permute(2, 0, 1)[None])
    mine = DetectionOutputs.from_description(task.describe(), "card").prediction(outputs, image_HWC, sizes[0])
    assert 3 < len(expected.boxes) < len(outputs["boxes"]), "some are outside of the image"
    np.testing.assert_allclose(mine.boxes, expected.boxes, atol=1e-4)
    for name in ("labels", "scores", "mask_bins", "image"):
        assert np.array_equal(getattr(mine, name), getattr(expected, name))
    assert (mine.classes, mine.category_ids) == (expected.classes, expected.category_ids)


def test_without_objects_and_without_masks():
    outputs = DetectionOutputs.from_description(DESCRIPTION | {"masks": False}, "card")
    empty = {name: value[:0] for name, value in objects().items()}
    mine = outputs.prediction(empty, np.zeros((5, 6, 3), np.uint8), (5, 6))
    assert mine.boxes.shape == (0, 4) and mine.masks is None
    assert outputs.names == ("boxes", "scores", "labels")


@pytest.mark.parametrize(
    "changes",
    [
        {"masks": 1},
        {"category_ids": [1]},
        {"category_ids": [1, 1]},
        {"category_ids": [1, -1]},
        {"classes": ["cup", "cup"]},
    ],
    ids=str,
)
def test_untrusted_descriptions(changes):
    with pytest.raises(BundleError, match="card"):
        DetectionOutputs.from_description(DESCRIPTION | changes, "card")


@pytest.mark.parametrize("name", ["boxes", "scores", "labels", "masks"])
def test_outputs_of_other_shapes(name):
    outputs = DetectionOutputs.from_description(DESCRIPTION, "card")
    outputs.check(objects())
    wrong = objects()
    wrong[name] = wrong[name] + 2 if name == "labels" else wrong[name][:-1]
    with pytest.raises(ExportError):
        outputs.check(wrong)
