"""The interface of a task, which turns a fused map into a prediction, for the training engine and the predictor.

Shapes: B batch, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from vitsplit.tasks.prediction import Prediction
from vitsplit.types import LayerTaps

if TYPE_CHECKING:
    from vitsplit.data.crops import SharedCrop
    from vitsplit.nn.familiarity import Familiarity

Predict = Callable[[Tensor], Sequence[Any]]
"""``Task.predict`` with a forward pass: ``image_BCHW`` (uint8) to predictions."""
Forward = Callable[[Tensor], tuple[Any, LayerTaps]]
"""Maps ``image_BCHW`` (uint8, on any device) to the decoder's output and its taps, both on the model's device.

Runs without gradients, in eval mode.
"""


class Batch(Protocol):
    """A collated batch."""

    image_BCHW: Tensor
    """uint8, all of one size."""
    names: list[str]
    """The file of each image."""
    extent_B2: Tensor | None
    """Height and width of the content of each image, int64; the backbone zeroes the padding below and to the right of
    it after normalization. None: the padding is treated as part of the image."""

    def to(self, device: Any) -> Batch:
        """The batch on a device."""
        ...

    def pin_memory(self) -> Batch:
        """The batch in pinned memory."""
        ...


class TrainData(Protocol):
    """Training samples. ``data[index, seed]`` is the sample ``index`` augmented with the random seed ``seed``."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...


class CropData(Protocol):
    """Training samples whose labels follow a crop shared by several heads."""

    def paths(self) -> list[Path]:
        """The images, in the order of their indices."""
        ...

    def cropped(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: SharedCrop) -> Any:
        """The task's training sample for a crop of an image.

        Args:
            index: Index of the image in ``paths``.
            image_CHW: The whole image; its label must have the same size.
            crop_CHW: The crop, shared by all heads.
            crop: Its position.

        Raises:
            DataError: The label is invalid; the message names its file.
        """
        ...


@runtime_checkable
class LengthGroups(Protocol):
    """Training samples of different lengths or kinds, which should be batched with similar samples."""

    def lengths(self) -> Sequence[int] | None:
        """Approximate length of each sample, negative for samples of the second kind; None: no grouping."""
        ...


@runtime_checkable
class FromFiles(Protocol):
    """A task whose samples come from files, so that a resumed run can detect changed files."""

    def files(self) -> Mapping[str, Path]:
        """Name in the data set to file, for the images and labels of all samples, in their order."""
        ...


@runtime_checkable
class StartsFromRun(Protocol):
    """A task whose training can start from the weights of an earlier run, ``config.start_from``."""

    config: Any

    def check_start(self, earlier: Any, description: Mapping[str, Any], folder: Path) -> None:
        """Checks that a run can start from a bundle.

        Args:
            earlier: The settings of the bundle's task.
            description: Its ``describe()``.
            folder: The bundle, for the message.

        Raises:
            BundleError: It cannot; the message says why.
        """
        ...


@runtime_checkable
class ComparesFeatures(Protocol):
    """A task whose predictions compare frozen features with those of the training images."""

    familiarity: Familiarity | None
    """That of the bundle, see ``Head``; None: predictions compare nothing."""

    def familiar_tokens(self, backbone: Any, layer: int) -> Tensor:
        """Tokens of labeled regions of training images, after a block and the final norm: (N, D) float32."""
        ...


@dataclass(frozen=True)
class GraphOutput:
    """An output of an exported graph.

    Attributes:
        kind: What its values are, and so how they are compared with the model's (``vitsplit.exporting.parity``).
        shape: Names of its dimensions, or sizes that are known.
        meaning: One line for those who run the graph.
    """

    kind: Literal["logits", "classes", "meters", "boxes", "scores", "labels", "masks", "features"]
    shape: tuple[str | int, ...]
    meaning: str


@runtime_checkable
class GraphTask(Protocol):
    """A task that can be part of an exported graph."""

    config: Any
    graph_batch: ClassVar[int | None]
    """Number of images that its graph takes at once; None: any."""

    def graph_decoder(self, decoder: nn.Module) -> nn.Module:
        """A decoder in a form whose operators do not depend on sizes or counts."""
        ...

    def graph_outputs(self, output: Any, taps: LayerTaps) -> dict[str, Tensor]:
        """The decoder's output to the prediction at the size of ``taps``, by the names of ``describe_graph``.

        For one scale of the whole image, without flip. Sizes may be symbolic, so no branch may depend on them.
        """
        ...

    def describe_graph(self) -> dict[str, GraphOutput]:
        """The outputs of ``graph_outputs``."""
        ...

    def from_graph(self, outputs: Sequence[Mapping[str, Tensor]]) -> Any:
        """Outputs of a graph to the output of the decoder for images without padding.

        Args:
            outputs: For each image its outputs by name, see ``vitsplit.tasks.TASK.outputs``, on the CPU.
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: Name to value, JSON-ready (nested where per class).
        score: The metric that selects the best bundle; higher is better.
        score_name: Its name.
        results: The predictions behind the metrics, if a report writes them: detections as COCO results.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    score: float = 0.0
    score_name: str = ""
    results: list[dict[str, Any]] | None = field(default=None, compare=False, repr=False)


class ValData(Protocol):
    """Validation samples; ``load`` is called in worker processes."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Any:
        """The sample, whose ``image_CHW`` is uint8 and of any size."""
        ...


class Metric(Protocol):
    """Accumulates the metrics of a validation set, image by image."""

    def update(self, prediction: Any, sample: Any) -> None:
        """Adds an image: its prediction from ``Task.val_predictions``, and its sample."""
        ...

    def state(self) -> Any:
        """The accumulated state, without GPU tensors, to be sent to other processes."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Sets the state to the merged states of all processes, including this one, in the given order."""
        ...

    def compute(self) -> Evaluation:
        """The metrics.

        Raises:
            DataError: There was nothing to evaluate; names the data.
        """
        ...


class Task(Protocol):
    """A task on a data set, or without data for prediction.

    Example:
        The task of ``tests/toy_plugin/toy_vitsplit/counting.py``, which counts objects, is complete in 200 lines:

        >>> vitsplit.train(data="my_points", task="counting")  # doctest: +SKIP
    """

    config: Any
    name: ClassVar[str]
    same_size: ClassVar[bool]
    """Whether all training images have one size, so that none is padded to its batch."""

    def train_data(self) -> TrainData:
        """The training samples."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples to a batch.

        Args:
            samples: Items of ``train_data``.

        Returns:
            The batch, on the CPU.
        """
        ...

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """The divisors of the loss terms' sums, such as the number of valid pixels.

        They depend on labels only, so that the engine can sum them over processes and micro-batches before the forward
        pass: the loss of an optimizer step does not depend on how its batch is split.

        Args:
            batch: The batch.

        Returns:
            By loss term, a float64 scalar () without unit.
        """
        ...

    def targets(self, batch: Batch, taps: LayerTaps) -> Any:
        """The labels that the decoder needs in training; None if only the loss needs them.

        The detection decoder matches its proposals to the ground-truth boxes and returns losses.

        Args:
            batch: The batch, on the model's device.
            taps: The features of its images, with the padding.

        Returns:
            The second argument of the decoder.
        """
        ...

    def loss_sums(self, output: Any, batch: Batch, taps: LayerTaps) -> dict[str, Tensor]:
        """The loss terms, as sums over the batch.

        Args:
            output: The decoder's output.
            batch: The batch, on the model's device.
            taps: The features of its images, with the padding.

        Returns:
            By loss term, a float32 scalar () without unit: its weighted sum before division by its normalizer.
        """
        ...

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes ``metrics.json`` and a page with pictures.

        Args:
            forward: Forward pass of backbone and head.
            evaluation: The metrics.
            folder: Output folder; exists.
            title: Title of the page.
            count: Number of images on the page.

        Returns:
            Path of the page.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Metadata that a bundle needs to be used without the data: classes, colors, units. JSON-ready."""
        ...

    def build_decoder(self, name: str, width: int, patch_size: int) -> nn.Module:
        """A decoder, one of ``config.decoders``, from ``fused_BDhw`` (D = width), or several maps, to the output.

        The map's stride is ``patch_size`` pixels: h = H / patch_size of the padded image.

        Args:
            name: One of ``config.decoders``.
            width: Number of channels D of each map.
            patch_size: Patch size of the backbone in pixels.

        Returns:
            The decoder, untrained.
        """
        ...

    def val_data(self) -> ValData:
        """The validation samples, with the labels that ``metric`` needs."""
        ...

    def val_predictions(self, forward: Forward, image_BCHW: Tensor, samples: Sequence[Any]) -> Sequence[Any]:
        """Predictions for ``metric``.

        Args:
            forward: Forward pass of backbone and head.
            image_BCHW: The stacked images of the samples, (B, 3, H, W) uint8, RGB.
            samples: Items of ``val_data``.

        Returns:
            One prediction per sample.
        """
        ...

    def metric(self) -> Metric:
        """A new, empty metric.

        Raises:
            DataError: The validation samples have no labels to compare with.
        """
        ...

    def predict(self, forward: Forward, image_BCHW: Tensor) -> Sequence[Prediction]:
        """Predictions for images of one size.

        Args:
            forward: Forward pass of backbone and head.
            image_BCHW: The images, (B, 3, H, W) uint8, RGB.

        Returns:
            One prediction per image, at its size.
        """
        ...

    def table(self, evaluation: Evaluation) -> Table:
        """The metrics as a table for the terminal.

        Args:
            evaluation: The metrics.

        Returns:
            The table; a notebook shows it too.
        """
        ...


@dataclass(frozen=True)
class DenseFile:
    """How a large prediction is written, row by row.

    Attributes:
        ending: End of the file name before the suffix, such as ``_mask``.
        dtype: Data type of the values.
        picture_ending: End of the file name of the preview, a JPEG.
        draw: Draws the preview from a downscaled prediction ``(H, W)`` and image ``(H, W, 3)`` uint8.
        palette: Colors of the values if they are class ids (uint8).
        description: Image description in a TIFF.
    """

    ending: str
    dtype: Any
    picture_ending: str
    draw: Callable[[NDArray[Any], NDArray[np.uint8]], Image.Image]
    palette: tuple[tuple[int, int, int], ...] | None = None
    description: str = ""


class DenseTask(Task, Protocol):
    """A task that predicts a value per pixel (segmentation, depth), so that images can be predicted in tiles."""

    def dense(self, forward: Forward, image_BCHW: Tensor) -> Tensor:
        """Values that may be averaged where tiles overlap, ``(B, C, H, W)`` float32 at the images' own size.

        Class probabilities for segmentation, meters for depth.
        """
        ...

    def postprocess(self, values_BCHW: Tensor) -> Tensor:
        """Values to the prediction ``(B, H, W)``: class ids for segmentation (uint8), meters for depth (float32)."""
        ...

    def dense_file(self) -> DenseFile:
        """How a large prediction is written."""
        ...
