"""The task of monocular depth.

Shapes: B batch, D width, h w grid of the output, H W pixels, M metrics.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from vitsplit.data.check import Progress, Report
from vitsplit.errors import BundleError
from vitsplit.files import shown
from vitsplit.tasks.base import DenseFile, Evaluation, Forward, GraphOutput
from vitsplit.tasks.depth.check import check_files
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.depth.data import (
    DepthBatch,
    DepthSample,
    DepthSet,
    collate,
    geometric_mean_depth,
    load_depth,
    unit_warning,
)
from vitsplit.tasks.depth.decoder import DepthDecoder, LinearDepthDecoder
from vitsplit.tasks.depth.layouts import open_depth_set
from vitsplit.tasks.depth.loss import silog_sum
from vitsplit.tasks.depth.metrics import DepthMetric
from vitsplit.tasks.depth.predict import predict_depth
from vitsplit.tasks.depth.prediction import DepthPrediction
from vitsplit.tasks.depth.report import metrics_table, write_report
from vitsplit.tasks.depth.transforms import TrainDepth
from vitsplit.tasks.description import ADVICE, fields
from vitsplit.tasks.segmentation.loss import resize_logits
from vitsplit.types import LayerTaps

logger = logging.getLogger(__name__)

DEFAULT_START = 2.5
"""Initial prediction in meters of a decoder without training images."""
UNIT_PROBES = 5
"""Number of depth maps read when a data set is opened, to detect a wrong unit."""


class DepthTask:
    """Monocular depth: the depth of each pixel, in meters.

    Args:
        config: Settings.
        train: Training images, for training.
        val: Validation images, for evaluation.
    """

    name: ClassVar[str] = "depth"
    graph_batch: ClassVar[int | None] = None
    same_size: ClassVar[bool] = True

    def __init__(self, config: DepthConfig, *, train: DepthSet | None = None, val: DepthSet | None = None) -> None:
        self.config = config
        self.train_set = train
        self.val_set = val

    @classmethod
    def open(cls, config: DepthConfig, data: Path, splits: tuple[str, ...]) -> DepthTask:
        """Opens the task on a data set: the first of two splits for training, the last for evaluation.

        Raises:
            DataError: The data are invalid.
        """
        sets = [open_depth_set(data, split, config.format, config.depth_scale) for split in splits]
        warn_of_unit(sets[0])
        return cls(config, train=sets[0] if len(sets) > 1 else None, val=sets[-1])

    @classmethod
    def check_files(cls, config: DepthConfig, root: Path, workers: int, progress: Progress) -> Report:
        """See ``tasks.check_data``."""
        return check_files(config, root, workers, progress)

    @classmethod
    def check_description(cls, config: DepthConfig, description: Any, where: str) -> None:
        """See ``tasks.check_description``."""
        recorded = fields(description, where, required=("unit", "min_depth", "max_depth"))
        for name, value in (("unit", "metres"), ("min_depth", config.min_depth), ("max_depth", config.max_depth)):
            if recorded[name] != value or isinstance(recorded[name], bool):
                raise BundleError(
                    f"{where}: {name} is {shown(recorded[name])}, but its settings have {shown(value)}. {ADVICE}"
                )

    @classmethod
    def from_description(cls, config: DepthConfig, description: Mapping[str, Any]) -> DepthTask:
        """The task of a bundle, from its configuration."""
        return cls(config)

    def build_decoder(self, name: str, width: int, patch_size: int) -> nn.Module:
        """The paper's decoder; or batch norm and a 1x1 convolution for the linear probe."""
        build = LinearDepthDecoder if name == "probe" else DepthDecoder
        return build(width, self.config, self.start_depth())

    def start_depth(self) -> float:
        """The depth in meters that an untrained decoder predicts, see ``DepthConfig.start_depth``."""
        if self.config.start_depth is not None:
            return self.config.start_depth
        # Without training images the weights are loaded, or only shapes and times matter.
        return DEFAULT_START if self.train_set is None else geometric_mean_depth(self.train_set, self.config)

    @staticmethod
    def random_batch(image_BCHW: Tensor, num_classes: int, generator: torch.Generator) -> DepthBatch:
        """Images with random depths, for benchmarks."""
        depth_BHW = 1 + 9 * torch.rand((len(image_BCHW), *image_BCHW.shape[2:]), generator=generator)
        return DepthBatch(image_BCHW, depth_BHW, ["random"] * len(image_BCHW))

    def train_data(self) -> TrainDepth:
        """Augmented training samples."""
        assert self.train_set is not None, "the task was opened without training images"
        return TrainDepth(self.train_set, self.config)

    def files(self) -> dict[str, Path]:
        """The files of the training samples, then of the validation samples."""
        return {name: path for each in (self.train_set, self.val_set) if each for name, path in each.files().items()}

    def val_images(self) -> DepthSet:
        """The validation images."""
        assert self.val_set is not None, "the task was opened without validation images"
        return self.val_set

    def collate(self, samples: Sequence[DepthSample]) -> DepthBatch:
        """Samples to a batch."""
        return collate(samples)

    def normalizers(self, batch: DepthBatch) -> dict[str, Tensor]:
        """The number of valid pixels."""
        return {"silog": (batch.depth_BHW > 0).sum().double()}

    def targets(self, batch: DepthBatch, taps: LayerTaps) -> None:
        """The decoder needs no labels."""

    def loss_sums(self, output: Tensor, batch: DepthBatch, taps: LayerTaps) -> dict[str, Tensor]:
        """The weighted scale-invariant log loss, times the number of valid pixels; see ``silog_sum``."""
        config = self.config
        loss = silog_sum(output, batch.depth_BHW, taps.padding, config.pad_output, config.variance_focus)
        return {"silog": config.loss_weight * loss}

    def val_data(self) -> DepthSet:
        """The validation images with their depth maps."""
        return self.val_images()

    def val_predictions(self, forward: Forward, image_BCHW: Tensor, samples: Sequence[DepthSample]) -> Sequence[Tensor]:
        """The predicted depths, ``depth_HW`` in meters on the model's device."""
        return [*self.postprocess(self.dense(forward, image_BCHW))]

    def metric(self) -> DepthMetric:
        """The metrics of Table 11 and others."""
        return DepthMetric(self.config, self.val_images())

    def predict(self, forward: Forward, image_BCHW: Tensor) -> list[DepthPrediction]:
        """Predictions for images of one size, uint8."""
        depth_BHW = self.postprocess(self.dense(forward, image_BCHW)).cpu().numpy()
        images_BHWC = image_BCHW.permute(0, 2, 3, 1).cpu().numpy()
        return [
            DepthPrediction(depth=depth_HW, image=image_HWC)
            for depth_HW, image_HWC in zip(depth_BHW, images_BHWC, strict=True)
        ]

    def dense(self, forward: Forward, image_BCHW: Tensor) -> Tensor:
        """Meters, ``(B, 1, H, W)``."""
        return predict_depth(forward, image_BCHW, self.config)

    def postprocess(self, values_B1HW: Tensor) -> Tensor:
        """Meters, ``(B, H, W)``."""
        return values_B1HW[:, 0]

    def graph_decoder(self, decoder: nn.Module) -> nn.Module:
        """See ``tasks.base.GraphTask``."""
        return decoder

    def graph_outputs(self, output: Tensor, taps: LayerTaps) -> dict[str, Tensor]:
        """Meters; see ``tasks.base.GraphTask``."""
        depth_B1HW = resize_logits(output.float(), taps.image_size, taps.padding, self.config.pad_output)
        return {"depth": depth_B1HW[:, 0]}

    def describe_graph(self) -> dict[str, GraphOutput]:
        """See ``tasks.base.GraphTask``."""
        return {"depth": GraphOutput("meters", ("batch", "height", "width"), "depth in meters")}

    def from_graph(self, outputs: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Meters, ``(B, 1, H, W)``; see ``tasks.base.GraphTask``."""
        return torch.stack([each["depth"][None] for each in outputs])

    def dense_file(self) -> DenseFile:
        """Meters in float32."""
        return DenseFile(
            "_depth",
            np.float32,
            "_depth",
            lambda depth_HW, image_HWC: DepthPrediction(depth_HW, image_HWC).picture(),
            description="depth in meters",
        )

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes the metrics, and images of input, ground truth, prediction and error."""
        predict = functools.partial(self.predict, forward)
        return write_report(
            self.val_images(), predict, evaluation, folder, config=self.config, title=title, count=count
        )

    def table(self, evaluation: Evaluation) -> Table:
        """The metrics and the evaluation protocol."""
        return metrics_table(evaluation)

    def describe(self) -> dict[str, Any]:
        """Unit and range of the prediction."""
        return {"unit": "metres", "min_depth": self.config.min_depth, "max_depth": self.config.max_depth}


def warn_of_unit(images: DepthSet) -> None:
    """Logs a warning if one of a few depth maps seems to be in another unit."""
    for index in np.linspace(0, len(images) - 1, min(UNIT_PROBES, len(images))).astype(int).tolist():
        depth_path = images.items[index][1]
        warning = unit_warning(load_depth(depth_path, images.scale), depth_path)
        if warning is not None:
            logger.warning(warning)
            return
