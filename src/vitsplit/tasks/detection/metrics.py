"""COCO's average precision of boxes and masks, and COCO results.

Average precision is the mean over IoU thresholds 0.5, 0.55, ..., 0.95 and over the classes with objects.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from numpy.typing import NDArray

from vitsplit.atomic_files import write_text
from vitsplit.errors import DataError
from vitsplit.tasks.base import Evaluation
from vitsplit.tasks.detection.data import DetectionSample, DetectionSet
from vitsplit.tasks.detection.prediction import DetectionPrediction

logger = logging.getLogger(__name__)

Results = list[dict[str, Any]]
"""Entries of COCO's results format."""
Kind = Literal["box", "mask"]
"""Type of IoU."""
COCO_KINDS = {"box": "bbox", "mask": "segm"}
"""COCO's name of each type."""
IOU_50, IOU_75 = 0, 5
"""Indices of the thresholds 0.5 and 0.75."""
AREAS = ("all", "small", "medium", "large")
"""COCO's ranges: below 32 x 32 pixels, below 96 x 96, and above."""


class DetectionMetric:
    """COCO's AP of boxes, and of masks if data, decoder and detections have them; see ``Metric``.

    Args:
        images: The data set with its labels.
        masks: Whether the decoder predicts masks.

    Raises:
        DataError: The data set has no objects.
    """

    def __init__(self, images: DetectionSet, *, masks: bool) -> None:
        self.images = images
        self.masks = masks and images.has_masks
        self.truth = images.coco_truth()
        self.objects = [each["category_id"] for each in self.truth["annotations"] if not each["iscrowd"]]
        if not self.objects:
            raise DataError(f"{images.source}: no object in the {images.split} split to evaluate on. Check its labels.")
        self.results: Results = []

    def update(self, prediction: DetectionPrediction, sample: DetectionSample) -> None:
        """Adds the detections in an image."""
        self.results += prediction.coco_results(sample.image_id)

    def state(self) -> Results:
        """All detections."""
        return self.results

    def merge(self, states: Sequence[Results]) -> None:
        """Concatenates the detections."""
        self.results = [entry for results in states for entry in results]

    def compute(self) -> Evaluation:
        """AP over all classes and per class; the score is mask AP, or box AP without masks."""
        category_ids = self.images.category_ids
        classes = {
            name: {"objects": self.objects.count(category_id)}
            for name, category_id in zip(self.images.classes.names, category_ids, strict=True)
        }
        metrics: dict[str, Any] = {}
        kinds: list[Kind] = ["box", "mask"] if self._can_compare_masks() else ["box"]
        for kind in kinds:
            figures = average_precision(self.truth, self.results, kind, category_ids)
            for row, figure in zip(classes.values(), figures.pop("classes"), strict=True):
                row |= {f"{kind}_{name}": value for name, value in figure.items()}
            metrics |= {f"{kind}_{name}": value for name, value in figures.items()}
        score_name = "mask_ap" if "mask_ap" in metrics else "box_ap"
        return Evaluation(metrics | {"classes": classes}, metrics[score_name], score_name, results=self.results)

    def _can_compare_masks(self) -> bool:
        """Whether ground truth and detections have masks; a bundle without masks can be evaluated on data with them."""
        have_masks = all("segmentation" in entry for entry in self.results)
        if self.masks and not have_masks:
            logger.warning("the detections have no masks: only boxes are evaluated")
        return self.masks and have_masks


def average_precision(
    truth: Mapping[str, Any], results: Results, kind: Kind, category_ids: Sequence[int]
) -> dict[str, Any]:
    """Average precision in 0..1; None without ground-truth objects.

    Args:
        truth: COCO annotations as a dict: ``images``, ``annotations``, ``categories``.
        results: All detections.
        kind: Type of IoU.
        category_ids: The id of each class.

    Returns:
        ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``; and ``classes``: a list with ``ap`` and
        ``ap50`` of each class.
    """
    precision_TRKA = _precision(truth, single_kind(results, kind), COCO_KINDS[kind])
    figures: dict[str, Any] = {
        "ap": _mean(precision_TRKA[..., 0]),
        "ap50": _mean(precision_TRKA[IOU_50, ..., 0]),
        "ap75": _mean(precision_TRKA[IOU_75, ..., 0]),
    }
    figures |= {f"ap_{area}": _mean(precision_TRKA[..., place]) for place, area in enumerate(AREAS) if place > 0}
    places = [sorted(category_ids).index(category_id) for category_id in category_ids]
    figures["classes"] = [
        {"ap": _mean(precision_TRKA[:, :, k, 0]), "ap50": _mean(precision_TRKA[IOU_50, :, k, 0])} for k in places
    ]
    return figures


def single_kind(results: Results, kind: Kind) -> Results:
    """The results with boxes only, or with masks only.

    pycocotools computes the area of an object from its box if there is one; for masks, it must be the mask's area.
    """
    left_out = {"box": "segmentation", "mask": "bbox"}[kind]
    return [{key: value for key, value in entry.items() if key != left_out} for entry in results]


def write_results(results: Results, folder: Path) -> tuple[Path, ...]:
    """Writes ``detections_bbox.json``, and ``detections_segm.json`` if there are masks, for pycocotools."""
    kinds: list[Kind] = ["box", "mask"]
    paths = []
    for kind in kinds[: 1 + any("segmentation" in entry for entry in results)]:
        path = folder / f"detections_{COCO_KINDS[kind]}.json"
        write_text(path, json.dumps(single_kind(results, kind)) + "\n")
        paths.append(path)
    return tuple(paths)


def _precision(truth: Mapping[str, Any], results: Results, iou_type: str) -> NDArray[np.float64]:
    """Precision by IoU threshold, recall, category (in the order of ids) and area; -1 without objects."""
    annotations = [{**annotation} for annotation in truth["annotations"]]  # the evaluator modifies them
    silent = {"print_function": lambda *_: None}
    truth_coco = COCO({**truth, "annotations": annotations}, **silent)
    run = COCOeval_faster(truth_coco, truth_coco.loadRes(results), iou_type, **silent)
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1]


def _mean(precision: NDArray[np.float64]) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None
