"""Predictions, with their pictures and files, without PyTorch and other large packages."""

import subprocess
import sys

PROGRAM = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {REFUSED}:
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
import numpy as np
from vitsplit.data.classes import ClassList
from vitsplit.data.decoding import to_image_array
from vitsplit.tasks.depth.prediction import DepthPrediction
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.tasks.segmentation.prediction import SegmentationPrediction

image = to_image_array(np.full((20, 30), 0.5))
classes = ClassList(("cup", "plate"))
bins = np.ones((1, 28, 28), np.float32)
SegmentationPrediction(np.ones((20, 30), np.uint8), classes, image, np.ones((20, 30), np.float32)).save(sys.argv[1])
DepthPrediction(np.full((20, 30), 2.5, np.float32), image).save(sys.argv[1])
DetectionPrediction(
    np.array([[2, 3, 12, 17]], np.float32), np.array([1]), np.ones(1, np.float32), bins, classes, (1, 2), image
).save(sys.argv[1])
"""
REFUSED = {"torch", "torchvision", "timm", "pydantic", "matplotlib", "faster_coco_eval", "rich", "yaml", "tyro"}


def test_predictions_are_saved_without_large_packages(tmp_path):
    program = PROGRAM.replace("{REFUSED}", repr(REFUSED))
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
    assert len([*tmp_path.iterdir()]) == 6  # both overlays have one name
