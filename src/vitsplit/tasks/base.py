"""What the training engine and the predictor ask of a task. A task turns a fused map into an answer.

Shapes: B batch, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from vitsplit.types import LayerTaps

if TYPE_CHECKING:
    from vitsplit.data.crops import SharedCrop

Predict = Callable[[Tensor], Sequence[Any]]
"""``Task.predict`` with a forward pass: ``image_BCHW`` (uint8) to the typed predictions."""
Forward = Callable[[Tensor], tuple[Any, LayerTaps]]
"""Maps ``image_BCHW`` (uint8, on any device) to the decoder's output and its taps, both on the model's device.

Runs without gradient, in eval mode.
"""


class Batch(Protocol):
    """A collated batch."""

    image_BCHW: Tensor
    """uint8, all of one size."""
    names: list[str]
    """The file that each image came from."""
    extent_B2: Tensor | None
    """Height and width of the content of each image, int64; the backbone sets what lies below and at the right of
    it to zero after normalization. None: what the images were padded with is taken as it is."""

    def to(self, device: Any) -> Batch:
        """The batch on a device."""
        ...

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which copies to a GPU are faster."""
        ...


class TrainData(Protocol):
    """Training samples. ``data[index, seed]`` is the sample ``index`` augmented with the random stream ``seed``."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> Any: ...


class CropData(Protocol):
    """Training samples whose labels follow a crop that several heads share."""

    def paths(self) -> list[Path]:
        """The images, in the order of their indices."""
        ...

    def cropped(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: SharedCrop) -> Any:
        """The task's own training sample for a crop of an image.

        Args:
            index: The image's place among ``paths``.
            image_CHW: The whole image; its label must be of the same size.
            crop_CHW: The crop as all heads see it.
            crop: Where it lies.

        Raises:
            DataError: The label cannot be used; the message names its file.
        """
        ...


@runtime_checkable
class LengthGroups(Protocol):
    """Training samples that differ in length, or in kind, so that a batch should be of samples that are alike."""

    def lengths(self) -> Sequence[int] | None:
        """Of every sample about how long it is, negative for samples of the second kind; None: any batch will do."""
        ...


@runtime_checkable
class FromFiles(Protocol):
    """A task whose samples come from files: a run that is resumed can then tell whether they have changed."""

    def files(self) -> Mapping[str, Path]:
        """The files of all samples, images and labels, in the order of the samples, by their names in the data set."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metrics: Name to value, JSON-ready (nested where per class).
        score: The one figure that decides which bundle is best; higher is better.
        score_name: Its name.
        results: What the figures were computed from, where a report writes it: detections as COCO results.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    score: float = 0.0
    score_name: str = ""
    results: list[dict[str, Any]] | None = field(default=None, compare=False, repr=False)


class ValData(Protocol):
    """Validation samples; ``load`` is called in other processes."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Any:
        """The sample, whose ``image_CHW`` is uint8 and of any size."""
        ...


class Metric(Protocol):
    """The figures of a validation set, counted image by image."""

    def update(self, prediction: Any, sample: Any) -> None:
        """Counts an image: what ``Task.val_predictions`` gave for it, and its sample."""
        ...

    def state(self) -> Any:
        """What was counted so far, without tensors on a GPU, to be sent to other processes."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Counts what all processes have counted, this one among them; their order decides about rounding."""
        ...

    def compute(self) -> Evaluation:
        """The figures of what was counted.

        Raises:
            DataError: Nothing could be counted; names the data.
        """
        ...


class Prediction(Protocol):
    """What a task says about one image. ``image`` is (H, W, 3) uint8; every task adds its own arrays."""

    image: NDArray[np.uint8]

    def overlay(self) -> Image.Image:
        """The image with the answer drawn on it, at the image's size."""
        ...

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, ...]:
        """Writes the answer and the overlay as files that begin with ``name``, and returns their paths."""
        ...


class Task(Protocol):
    """One task on one data set (or, at prediction, on none)."""

    config: Any
    name: ClassVar[str]
    same_size: ClassVar[bool]
    """Whether all training images are brought to one size, so that none depends on its batch."""

    def train_data(self) -> TrainData:
        """The training samples."""
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples to a batch."""
        ...

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar float64 per loss term: what the term's sum is divided by, such as the count of valid pixels.

        Depends on labels only, so that the engine can add it up over processes and micro-batches before the forward
        pass: the loss of an optimizer step is the same however its batch is spread.
        """
        ...

    def targets(self, batch: Batch, taps: LayerTaps) -> Any:
        """What the decoder itself must see of the labels in training; None where only the loss needs them.

        Detection's decoder samples its proposals against the true boxes and hands out losses.
        """
        ...

    def loss_sums(self, output: Any, batch: Batch, taps: LayerTaps) -> dict[str, Tensor]:
        """Scalar float32 per loss term: its weighted sum over the batch, not yet divided by its normalizer."""
        ...

    def write_report(self, forward: Forward, evaluation: Evaluation, folder: Path, *, title: str, count: int) -> Path:
        """Writes ``metrics.json`` and a page with ``count`` pictures, whose path is returned."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a bundle must record to be used without the data: classes, colors, units. JSON-ready."""
        ...

    def build_decoder(self, name: str, width: int, patch_size: int) -> nn.Module:
        """A decoder, one of ``config.decoders``, from ``fused_BDhw`` (D = width), or several maps, to the output.

        The map's stride is ``patch_size`` pixels: h = H / patch_size of the padded image.
        """
        ...

    def val_data(self) -> ValData:
        """The validation samples, without what ``metric`` does not need of them."""
        ...

    def val_predictions(self, forward: Forward, image_BCHW: Tensor, samples: Sequence[Any]) -> Sequence[Any]:
        """What ``metric`` compares with validation samples, one for each; ``image_BCHW`` are their images, stacked."""
        ...

    def metric(self) -> Metric:
        """A metric that has counted nothing yet.

        Raises:
            DataError: The validation samples have nothing to be compared with.
        """
        ...

    def predict(self, forward: Forward, image_BCHW: Tensor) -> Sequence[Prediction]:
        """The typed predictions for images (uint8) of one size."""
        ...

    def table(self, evaluation: Evaluation) -> Table:
        """The figures for the screen."""
        ...


@dataclass(frozen=True)
class DenseFile:
    """How a large prediction is written, row by row.

    Attributes:
        ending: What its name ends with before the suffix: ``_mask``.
        dtype: Of its values.
        picture_ending: The same of the picture to look at, a JPEG.
        draw: A small prediction ``(H, W)`` and its image ``(H, W, 3)`` uint8 to that picture.
        palette: Colors of the values, where they are class ids (uint8).
        description: What a TIFF says of its values.
    """

    ending: str
    dtype: Any
    picture_ending: str
    draw: Callable[[NDArray[Any], NDArray[np.uint8]], Image.Image]
    palette: tuple[tuple[int, int, int], ...] | None = None
    description: str = ""


class DenseTask(Task, Protocol):
    """A task that answers with values per pixel (segmentation, depth), so that images can be predicted in tiles."""

    def dense(self, forward: Forward, image_BCHW: Tensor) -> Tensor:
        """Values that may be averaged where tiles overlap, ``(B, C, H, W)`` float32 at the images' own size.

        Class probabilities of segmentation, meters of depth.
        """
        ...

    def settle(self, values_BCHW: Tensor) -> Tensor:
        """Values to the answer, ``(B, H, W)``: class ids of segmentation (uint8), meters of depth (float32)."""
        ...

    def dense_file(self) -> DenseFile:
        """How a large prediction is written."""
        ...
