"""The task of detection and instance segmentation.

Shapes: B batch, C channels, D width, H W pixels, N objects of an image. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from vitsplit.data.check import Progress, Report
from vitsplit.data.classes import ClassList
from vitsplit.errors import BundleError
from vitsplit.files import shown
from vitsplit.tasks.base import Evaluation, Forward, GraphOutput
from vitsplit.tasks.description import ADVICE, check_classes, fields
from vitsplit.tasks.detection.check import check_files
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionBatch, DetectionSample, DetectionSet, collate
from vitsplit.tasks.detection.decoder import (
    LOSSES,
    MASK_BINS,
    DetectionDecoder,
    Detections,
    DetectionTargets,
    Limits,
)
from vitsplit.tasks.detection.graph import GraphDetector, on_input
from vitsplit.tasks.detection.layouts import open_detection_set, require_same_classes
from vitsplit.tasks.detection.metrics import DetectionMetric
from vitsplit.tasks.detection.outputs import check_category_ids
from vitsplit.tasks.detection.predict import detect
from vitsplit.tasks.detection.prediction import DetectionPrediction
from vitsplit.tasks.detection.report import metrics_table, write_report
from vitsplit.tasks.detection.transforms import TrainDetection
from vitsplit.types import LayerTaps

logger = logging.getLogger(__name__)


class DetectionTask:
    """Detection of K classes, with masks (Mask R-CNN) or without (Faster R-CNN).

    Args:
        config: Settings.
        classes: Names and colors of the classes.
        category_ids: The id of each class in the annotations; None: 1, 2, ...
        masks: Whether to predict masks.
        train: Training images, for training.
        val: Validation images, for evaluation.
    """

    name: ClassVar[str] = "detection"
    graph_batch: ClassVar[int | None] = 1
    same_size: ClassVar[bool] = False

    def __init__(
        self,
        config: DetectionConfig,
        classes: ClassList,
        *,
        category_ids: Sequence[int] | None = None,
        masks: bool = True,
        train: DetectionSet | None = None,
        val: DetectionSet | None = None,
    ) -> None:
        self.config = config
        self.classes = classes
        self.category_ids = tuple(category_ids or range(1, len(classes) + 1))
        self.masks = masks
        self.train_set = train
        self.val_set = val

    @classmethod
    def open(cls, config: DetectionConfig, data: Path, splits: tuple[str, ...]) -> DetectionTask:
        """Opens the task on a data set: the first of two splits for training, the last for evaluation.

        Raises:
            ConfigError: A setting is invalid.
            DataError: The data are invalid.
        """
        sets = [open_detection_set(data, split, config) for split in splits]
        require_same_classes(dict(zip(splits, sets, strict=True)))
        first, last = sets[0], sets[-1]
        if len(sets) > 1:
            reason = {
                "on": "masks on",
                "off": "masks off",
                "auto": "every object of the training images has a mask"
                if first.has_masks
                else "not every object of the training images has a mask",
            }
            logger.info("%s R-CNN: %s", "Mask" if first.has_masks else "Faster", reason[config.masks])
            if first.has_masks and not last.has_masks:
                logger.warning("%s: not every object has a mask: only boxes are evaluated", last.source)
        return cls(
            config,
            first.classes,
            category_ids=first.category_ids,
            masks=first.has_masks,
            train=first if len(sets) > 1 else None,
            val=last,
        )

    @classmethod
    def check_files(cls, config: DetectionConfig, root: Path, workers: int, progress: Progress) -> Report:
        """See ``tasks.check_data``."""
        return check_files(config, root, workers, progress)

    @classmethod
    def check_description(cls, config: DetectionConfig, description: Any, where: str) -> None:
        """See ``tasks.check_description``."""
        recorded = fields(description, where, required=("classes", "colours"), optional=("category_ids", "masks"))
        count = check_classes(recorded, where)
        masks = recorded.get("masks", config.masks != "off")
        if not isinstance(masks, bool):
            raise BundleError(f"{where}: masks must be true or false, not {shown(masks)}. {ADVICE}")
        category_ids = recorded.get("category_ids", list(range(1, count + 1)))
        check_category_ids(category_ids, count, where)

    @classmethod
    def from_description(cls, config: DetectionConfig, description: Mapping[str, Any]) -> DetectionTask:
        """The task of a bundle, from its description; classes and colors are enough to count parameters."""
        colors = tuple((red, green, blue) for red, green, blue in description["colours"])
        return cls(
            config,
            ClassList(names=tuple(description["classes"]), colors=colors),
            category_ids=description.get("category_ids"),
            masks=description.get("masks", config.masks != "off"),
        )

    def build_decoder(self, name: str, width: int, patch_size: int) -> DetectionDecoder:
        """Feature pyramid and Mask R-CNN (or Faster R-CNN).

        The linear probe uses the same detector on the frozen last layer, with four resized maps in place of learned
        transposed convolutions.
        """
        return DetectionDecoder(
            width, patch_size, len(self.classes), self.config, masks=self.masks, learned_maps=name != "probe"
        )

    def train_data(self) -> TrainDetection:
        """Augmented training samples."""
        assert self.train_set is not None, "the task was opened without training images"
        return TrainDetection(self.train_set, self.config)

    def files(self) -> dict[str, Path]:
        """The files of the training samples, then of the validation samples."""
        return {name: path for each in (self.train_set, self.val_set) if each for name, path in each.files().items()}

    def val_images(self) -> DetectionSet:
        """The validation images."""
        assert self.val_set is not None, "the task was opened without validation images"
        return self.val_set

    def collate(self, samples: Sequence[DetectionSample]) -> DetectionBatch:
        """Samples to a batch."""
        return collate(samples)

    def normalizers(self, batch: DetectionBatch) -> dict[str, Tensor]:
        """The number of images, for each loss; see ``loss_sums``."""
        count = torch.full((), len(batch.names), dtype=torch.float64, device=batch.image_BCHW.device)
        return dict.fromkeys(self._losses(), count)

    def targets(self, batch: DetectionBatch, taps: LayerTaps) -> DetectionTargets:
        """The ground-truth objects, shifted by the backbone's padding."""
        padding = taps.padding
        offset_4 = torch.tensor([padding.left, padding.top] * 2, dtype=torch.float32, device=batch.image_BCHW.device)
        masks = None
        if self.masks and batch.masks is not None:
            around = (padding.left, padding.right, padding.top, padding.bottom)
            masks = [F.pad(masks_NHW, around) for masks_NHW in batch.masks]
        return DetectionTargets(
            [(padding.top + height, padding.left + width) for height, width in batch.sizes],
            [boxes_N4 + offset_4 for boxes_N4 in batch.boxes],
            batch.labels,
            masks,
        )

    def loss_sums(self, output: dict[str, Tensor], batch: DetectionBatch, taps: LayerTaps) -> dict[str, Tensor]:
        """Each loss times the number of images.

        torchvision's losses are means over the proposals sampled in a micro-batch, not over images. Weighting them by
        images is exact for one micro-batch, and approximate for several.
        """
        return {name: output[name] * len(batch.names) for name in self._losses()}

    def val_data(self) -> DetectionSet:
        """The validation images without rasterized masks; the metric uses the masks of the label files."""
        return dataclasses.replace(self.val_images(), has_masks=False)

    def val_predictions(
        self, forward: Forward, image_BCHW: Tensor, samples: Sequence[DetectionSample]
    ) -> list[DetectionPrediction]:
        """The predicted objects."""
        return self.predict(forward, image_BCHW)

    def metric(self) -> DetectionMetric:
        """COCO's AP of boxes, and of masks if data and decoder have them."""
        return DetectionMetric(self.val_images(), masks=self.masks)

    def predict(self, forward: Forward, image_BCHW: Tensor) -> list[DetectionPrediction]:
        """Predictions for images of one size, uint8."""
        images_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return [
            DetectionPrediction(
                boxes=found.boxes_N4.numpy(),
                labels=found.labels_N.cpu().numpy(),
                scores=found.scores_N.cpu().numpy(),
                mask_bins=None if found.masks_Nmm is None else found.masks_Nmm.cpu().numpy(),
                classes=self.classes,
                category_ids=self.category_ids,
                image=image_HWC,
            )
            for found, image_HWC in zip(detect(forward, image_BCHW, self.config), images_BHWC, strict=True)
        ]

    def graph_decoder(self, decoder: nn.Module) -> nn.Module:
        """See ``tasks.base.GraphTask``."""
        assert isinstance(decoder, DetectionDecoder)
        return GraphDetector(decoder)

    def graph_outputs(self, output: Sequence[Detections], taps: LayerTaps) -> dict[str, Tensor]:
        """Boxes, scores, labels and masks of one image; see ``tasks.base.GraphTask``."""
        (found,) = output
        return on_input(found, taps)

    def describe_graph(self) -> dict[str, GraphOutput]:
        """See ``tasks.base.GraphTask``."""
        outputs = {
            "boxes": GraphOutput("boxes", ("objects", 4), "x1, y1, x2, y2 in pixels of the input"),
            "scores": GraphOutput("scores", ("objects",), "probability of the class, decreasing"),
            "labels": GraphOutput("labels", ("objects",), "index of the class"),
        }
        if self.masks:
            bins = 2 * MASK_BINS
            meaning = "probability of the object in a grid of cells over its box; 0.5 is the border"
            outputs["masks"] = GraphOutput("masks", ("objects", bins, bins), meaning)
        return outputs

    def from_graph(self, outputs: Sequence[Mapping[str, Tensor]]) -> list[Detections]:
        """Objects in pixels of the input; see ``tasks.base.GraphTask``."""
        return [
            Detections(
                each["boxes"].float(),
                each["labels"].long(),
                each["scores"].float(),
                each["masks"].float() if self.masks else None,
                Limits.of(self.config),
            )
            for each in outputs
        ]

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes the table of classes, COCO results, and images of ground truth and prediction."""
        predict = functools.partial(self.predict, forward)
        return write_report(
            self.val_images(), predict, evaluation, folder, results=evaluation.results, title=title, count=count
        )

    def table(self, evaluation: Evaluation) -> Table:
        """AP per class."""
        return metrics_table(evaluation)

    def describe(self) -> dict[str, Any]:
        """Classes, colors, their ids in the annotations, and whether there are masks."""
        return {
            "classes": list(self.classes.names),
            "colours": [list(color) for color in self.classes.colors],
            "category_ids": list(self.category_ids),
            "masks": self.masks,
        }

    def _losses(self) -> list[str]:
        return [name for name in LOSSES.values() if self.masks or name != "mask"]
