"""The task of semantic segmentation.

Shapes: B batch, D width, K classes, h w grid of the logits, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from vitsplit.backbone.backbone import Backbone
from vitsplit.data.check import Progress, Report, map_files
from vitsplit.data.classes import IGNORE, ClassList, LabelScheme
from vitsplit.errors import ConfigError
from vitsplit.memory import available_cores
from vitsplit.nn.familiarity import Familiarity
from vitsplit.nn.pointwise import NormedPointwise
from vitsplit.nn.upernet import AUXILIARY_WEIGHT, DROPOUT, UperNet, WithAuxiliary
from vitsplit.tasks.base import DenseFile, Evaluation, Forward, GraphOutput
from vitsplit.tasks.description import check_classes, check_temperature, fields
from vitsplit.tasks.segmentation.calibration import PixelScores, choose_pixels
from vitsplit.tasks.segmentation.check import check_files
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import (
    SegmentationBatch,
    SegmentationSample,
    SegmentationSet,
    collate,
    load_mask,
)
from vitsplit.tasks.segmentation.decoder import SegmentationDecoder
from vitsplit.tasks.segmentation.familiar import familiar_tokens, remember_first, unfamiliarity
from vitsplit.tasks.segmentation.layouts import open_segmentation_set
from vitsplit.tasks.segmentation.loss import cross_entropy_sum, dice_sum, resize_logits
from vitsplit.tasks.segmentation.metrics import SegmentationMetric, ValPrediction
from vitsplit.tasks.segmentation.predict import class_shares, segment, segment_with_scores
from vitsplit.tasks.segmentation.prediction import SegmentationPrediction, draw_overlay
from vitsplit.tasks.segmentation.report import metrics_table, write_report
from vitsplit.tasks.segmentation.transforms import TrainSegmentation
from vitsplit.types import LayerTaps


class SegmentationTask:
    """Semantic segmentation of K classes.

    Args:
        config: Settings.
        classes: Names and colors of the classes.
        train: Training images, for training.
        val: Validation images, for evaluation.
        temperature: Temperature of the confidences; None: none has been fitted, see ``TaskConfig.calibrated``.
    """

    name: ClassVar[str] = "segmentation"
    graph_batch: ClassVar[int | None] = None
    same_size: ClassVar[bool] = True

    def __init__(
        self,
        config: SegmentationConfig,
        classes: ClassList,
        *,
        train: SegmentationSet | None = None,
        val: SegmentationSet | None = None,
        temperature: float | None = None,
    ) -> None:
        self.config = config
        self.classes = classes
        self.train_set = train
        self.val_set = val
        self.temperature = temperature
        self.familiarity: Familiarity | None = None
        self.class_weights_K = None if train is None else class_weights(config.class_weights, classes, train)

    @classmethod
    def open(cls, config: SegmentationConfig, data: Path, splits: tuple[str, ...]) -> SegmentationTask:
        """Opens the task on a data set: the first of two splits for training, the last for evaluation.

        Raises:
            DataError: The data are invalid.
        """
        sets = [open_segmentation_set(data, split, config.format) for split in splits]
        return cls(config, sets[0].classes, train=sets[0] if len(sets) > 1 else None, val=sets[-1])

    @classmethod
    def check_files(cls, config: SegmentationConfig, root: Path, workers: int, progress: Progress) -> Report:
        """See ``tasks.check_data``."""
        return check_files(config, root, workers, progress)

    @classmethod
    def check_description(cls, config: SegmentationConfig, description: Any, where: str) -> None:
        """See ``tasks.check_description``."""
        recorded = fields(description, where, required=("classes", "colours"), optional=("temperature",))
        check_classes(recorded, where)
        check_temperature(recorded, where)

    @classmethod
    def from_description(cls, config: SegmentationConfig, description: Mapping[str, Any]) -> SegmentationTask:
        """The task of a bundle, from its description."""
        colors = tuple((red, green, blue) for red, green, blue in description["colours"])
        classes = ClassList(names=tuple(description["classes"]), colors=colors)
        return cls(config, classes, temperature=description.get("temperature"))

    def build_decoder(self, name: str, width: int, patch_size: int) -> nn.Module:
        """The paper's decoder; batch norm and a 1x1 convolution for the linear probe; or UperNet."""
        num_classes, norm, dropout = len(self.classes.names), self.config.decoder_norm, self.config.dropout
        match name:
            case "probe":
                return NormedPointwise(width, num_classes)
            case "upernet":
                return UperNet(width, num_classes, norm=norm, dropout=DROPOUT if dropout is None else dropout)
            case _:
                return SegmentationDecoder(
                    width,
                    num_classes,
                    last_norm=norm,
                    dropout=dropout or 0.0,
                    smooth_upsampling=self.config.smooth_upsampling,
                )

    @staticmethod
    def random_batch(image_BCHW: Tensor, num_classes: int, generator: torch.Generator) -> SegmentationBatch:
        """Images with random labels, for benchmarks."""
        shape = (len(image_BCHW), *image_BCHW.shape[2:])
        mask_BHW = torch.randint(0, num_classes, shape, dtype=torch.uint8, generator=generator)
        return SegmentationBatch(image_BCHW, mask_BHW, ["random"] * len(image_BCHW))

    def train_data(self) -> TrainSegmentation:
        """Augmented training samples."""
        assert self.train_set is not None, "the task was opened without training images"
        return TrainSegmentation(self.train_set, self.config)

    def files(self) -> dict[str, Path]:
        """The files of the training samples, then of the validation samples."""
        return {name: path for each in (self.train_set, self.val_set) if each for name, path in each.files().items()}

    def familiar_tokens(self, backbone: Backbone, layer: int) -> Tensor:
        """See ``tasks.base.ComparesFeatures``."""
        assert self.train_set is not None, "the task was opened without training images"
        return familiar_tokens(self.train_set, self.config, backbone, layer)

    def val_images(self) -> SegmentationSet:
        """The validation images."""
        assert self.val_set is not None, "the task was opened without validation images"
        return self.val_set

    def collate(self, samples: Sequence[SegmentationSample]) -> SegmentationBatch:
        """Samples to a batch."""
        return collate(samples)

    def normalizers(self, batch: SegmentationBatch) -> dict[str, Tensor]:
        """Cross-entropy: (weighted) number of valid pixels, or of all (``loss_average``); Dice: number of images."""
        valid = batch.mask_BHW != IGNORE
        if self.config.loss_average == "all":
            count = torch.full((), valid.numel(), dtype=torch.float64, device=valid.device)
        elif self.class_weights_K is None:
            count = valid.sum().double()
        else:
            weights_K = self.class_weights_K.to(batch.mask_BHW.device, torch.float64)
            count = weights_K[batch.mask_BHW[valid].long()].sum()
        terms = {"cross_entropy": count}
        if self.config.dice_weight:
            terms["dice"] = torch.full((), len(batch.names), dtype=torch.float64, device=count.device)
        return terms

    def targets(self, batch: SegmentationBatch, taps: LayerTaps) -> None:
        """The decoder needs no labels."""

    def loss_sums(self, output: Tensor | WithAuxiliary, batch: SegmentationBatch, taps: LayerTaps) -> dict[str, Tensor]:
        """Loss sums matching ``normalizers``; the Dice term is weighted.

        The weighted cross-entropy of UperNet's auxiliary head is added to that of the logits.
        """
        if isinstance(output, WithAuxiliary):
            terms = self.loss_sums(output.logits, batch, taps)
            auxiliary = self._cross_entropy(output.auxiliary, batch, taps)
            return terms | {"cross_entropy": terms["cross_entropy"] + AUXILIARY_WEIGHT * auxiliary}
        terms = {"cross_entropy": self._cross_entropy(output, batch, taps)}
        if self.config.dice_weight:
            dice = dice_sum(output, batch.mask_BHW, taps.padding, self.config.pad_logits)
            terms["dice"] = self.config.dice_weight * dice
        return terms

    def _cross_entropy(self, logits_BKhw: Tensor, batch: SegmentationBatch, taps: LayerTaps) -> Tensor:
        weights_K = None if self.class_weights_K is None else self.class_weights_K.to(logits_BKhw.device)
        return cross_entropy_sum(logits_BKhw, batch.mask_BHW, taps.padding, self.config.pad_logits, weights_K)

    def val_data(self) -> SegmentationSet:
        """The validation images with their masks."""
        return self.val_images()

    def val_predictions(
        self, forward: Forward, image_BCHW: Tensor, samples: Sequence[SegmentationSample]
    ) -> Sequence[ValPrediction]:
        """The predicted masks, and the scores of some pixels."""
        num_images, num_classes = len(self.val_images()), len(self.classes)
        pixels = [choose_pixels(sample.mask_HW, num_images, num_classes) for sample in samples]
        masks_BHW, scores = segment_with_scores(forward, image_BCHW, self.config, pixels)
        return [
            ValPrediction(mask_HW, PixelScores(scores_PK, sample.mask_HW.flatten()[place_P].long()))
            for mask_HW, scores_PK, place_P, sample in zip(masks_BHW, scores, pixels, samples, strict=True)
        ]

    def metric(self) -> SegmentationMetric:
        """MIoU and related metrics."""
        return SegmentationMetric(self.val_images(), self.temperature)

    def predict(self, forward: Forward, image_BCHW: Tensor) -> list[SegmentationPrediction]:
        """Predictions for images of one size, uint8."""
        forward = remember_first(forward) if self.familiarity is not None else forward
        found = segment(forward, image_BCHW, self.config, self.temperature or 1.0)
        masks_BHW, confidences_BHW = (each.cpu().numpy() for each in found)
        images_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        distances: Any = [None] * len(images_BHWC)
        if self.familiarity is not None:
            distances = unfamiliarity(forward, image_BCHW, self.config, self.familiarity).cpu().numpy()
        return [
            SegmentationPrediction(mask_HW, self.classes, *each)
            for mask_HW, *each in zip(masks_BHW, images_BHWC, confidences_BHW, distances, strict=True)
        ]

    def dense(self, forward: Forward, image_BCHW: Tensor) -> Tensor:
        """Class probabilities, ``(B, K, H, W)``."""
        return class_shares(forward, image_BCHW, self.config)

    def postprocess(self, values_BKHW: Tensor) -> Tensor:
        """The most probable class of each pixel."""
        return values_BKHW.argmax(1).to(torch.uint8)

    def graph_decoder(self, decoder: nn.Module) -> nn.Module:
        """See ``tasks.base.GraphTask``."""
        return decoder

    def graph_outputs(self, output: Tensor, taps: LayerTaps) -> dict[str, Tensor]:
        """Logits and class ids; see ``tasks.base.GraphTask``."""
        logits_BKHW = resize_logits(output.float(), taps.image_size, taps.padding, self.config.pad_logits)
        return {"logits": logits_BKHW, "classes": logits_BKHW.argmax(1).to(torch.uint8)}

    def describe_graph(self) -> dict[str, GraphOutput]:
        """See ``tasks.base.GraphTask``."""
        count = len(self.describe()["classes"])
        return {
            "logits": GraphOutput(
                "logits",
                ("batch", count, "height", "width"),
                "score of each class; divided by the head's `temperature` in `description` (1 if there is none), a "
                "softmax over the classes gives probabilities; resizing (bilinear) followed by argmax gives class ids "
                "at another size",
            ),
            "classes": GraphOutput("classes", ("batch", "height", "width"), "index of the class of the highest score"),
        }

    def from_graph(self, outputs: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Logits, ``(B, K, H, W)``; see ``tasks.base.GraphTask``."""
        return torch.stack([each["logits"] for each in outputs])

    def dense_file(self) -> DenseFile:
        """Class ids with a palette."""
        return DenseFile(
            "_mask",
            np.uint8,
            "_overlay",
            lambda mask_HW, image_HWC: draw_overlay(mask_HW, self.classes, image_HWC),
            palette=self.classes.colors,
        )

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes the table of classes, and images of input, ground truth, prediction and error."""
        predict = functools.partial(self.predict, forward)
        return write_report(self.val_images(), predict, evaluation, folder, title=title, count=count)

    def table(self, evaluation: Evaluation) -> Table:
        """IoU and accuracy per class."""
        return metrics_table(evaluation)

    def describe(self) -> dict[str, Any]:
        """Classes and colors, and the temperature if one was fitted."""
        found = {"classes": list(self.classes.names), "colours": [list(color) for color in self.classes.colors]}
        return found if self.temperature is None else {**found, "temperature": self.temperature}


def class_weights(setting: str | Mapping[str, float], classes: ClassList, train: SegmentationSet) -> Tensor | None:
    """``none``, ``auto`` (inverse square root of the pixel count, mean 1), ``name=weight,...``, or the same as a dict.

    Returns:
        (K,) float32, or None if all weights are one.

    Raises:
        ConfigError: A class is unknown, a weight is negative, or the format is invalid.
    """
    if setting == "none":
        return None
    if setting == "auto":
        counts_K = class_pixels(train)
        present_K = counts_K > 0
        weights_K = torch.where(present_K, counts_K.clamp_min(1).rsqrt(), 0.0)
        weights_K = weights_K / weights_K[present_K].mean()
        return torch.where(present_K, weights_K, 1.0).float()
    pairs = _weight_pairs(setting) if isinstance(setting, str) else dict(setting)
    weights_K = torch.ones(len(classes.names))
    for name, weight in pairs.items():
        if name not in classes.names:
            raise ConfigError(f"class_weights: '{name}' is not a class. Classes: {', '.join(classes.names)}.")
        if not weight >= 0:
            raise ConfigError(f"class_weights: {name}={weight} is negative. Weights must be 0 or more.")
        weights_K[classes.names.index(name)] = weight
    return weights_K


def _weight_pairs(text: str) -> dict[str, float]:
    pairs = {}
    for pair in text.split(","):
        name, _, value = pair.rpartition("=")
        try:
            pairs[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(
                f"class_weights: '{pair}' is not NAME=WEIGHT. Use none, auto, or car=2,person=3."
            ) from None
    return pairs


def class_pixels(images: SegmentationSet) -> Tensor:
    """Pixel counts per class over all masks of a data set, read in parallel: (K,) float64."""
    count = functools.partial(_count_pixels, labels=images.labels)
    masks = [mask_path for _, mask_path in images.items]
    return torch.stack(list(map_files(count, masks, available_cores()))).sum(0).double()


def _count_pixels(mask_path: Path, labels: LabelScheme) -> Tensor:
    counts_256 = torch.bincount(load_mask(mask_path, labels).flatten(), minlength=256)
    return counts_256[: len(labels.classes.names)]
