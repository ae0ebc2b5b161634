"""``Runtime``: exported folders as a predictor.

Shapes: B batch, C channels, H W pixels of an image, h w size of the graph's input.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.decoding import to_image_array
from vitsplit.data.resizing import fit_size, resize_image
from vitsplit.errors import ConfigError, DataError, ExportError
from vitsplit.runtime.card import ADVICE, CARD, HeadCard, join_cards, read_card
from vitsplit.runtime.sessions import PACKAGES, Device, RuntimeName, choose_runtime, open_session

OUTPUTS = {
    "segmentation": "vitsplit.tasks.segmentation.outputs:SegmentationOutputs",
    "depth": "vitsplit.tasks.depth.outputs:DepthOutputs",
    "detection": "vitsplit.tasks.detection.outputs:DetectionOutputs",
}
"""Where the predictions of each task are made from outputs, as ``module:class``."""
WITHOUT_PREDICTIONS = frozenset({"vqa"})
"""Tasks of which the graph has a part: their outputs are returned by ``Runtime.outputs`` only."""


class Outputs(Protocol):
    """The outputs of a head."""

    batched: ClassVar[bool]
    """Whether their first dimension is that of the batch; otherwise the graph takes one image."""

    @property
    def names(self) -> Sequence[str]:
        """The outputs that it reads."""
        ...

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Raises ``ExportError`` if the outputs of an image do not fit the description of the head."""
        ...

    def prediction(
        self, outputs: Mapping[str, NDArray[Any]], image_HWC: NDArray[np.uint8], input_size: tuple[int, int]
    ) -> Any:
        """The prediction of one image at its size.

        Args:
            outputs: The outputs of the image by name.
            image_HWC: The image, uint8.
            input_size: Height and width of the image in the graph's input.
        """
        ...


class Runtime:
    """One or several exported folders, opened in ONNX Runtime or OpenVINO. Thread-safe.

    The predictions are those of ``vitsplit.load(RUN).predict`` for the whole image at one scale without flip, with the
    same types, pictures and files. Of heads of visual question answering, ``outputs`` returns the visual tokens; there
    are no predictions without the language model.

    Args:
        folder: The folder, or several, whose heads have different names. Of folders exported with ``--split`` from one
            backbone, its graph is the same file, and runs once. Cards and files are checked.
        runtime: ``onnx`` (ONNX Runtime) or ``openvino``; None: the first format in the folder whose package is
            installed.
        threads: Number of threads; None: all cores.
        device: ``cpu``; or with ONNX Runtime, from ``onnxruntime-gpu``, ``cuda`` or ``tensorrt``.

    Attributes:
        card: The card, with the heads of all folders.
        runtime: The runtime.

    Raises:
        BundleError, ExportError: The folder is invalid or corrupt; the message names the file.
        ConfigError: The folder has no graph for the runtime, its package is not installed or does not support the
            device, or folders do not fit together.

    Example:
        >>> predictions = Runtime("exported").predict("image.jpg")  # doctest: +SKIP
        >>> predictions["segmentation"].mask, predictions["depth"].depth  # doctest: +SKIP
        >>> predictions["depth"].save("predictions", "image")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path | Sequence[str | Path],
        runtime: RuntimeName | None = None,
        threads: int | None = None,
        device: Device = "cpu",
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}, must be at least 1.")
        cards = [read_card(each) for each in ([folder] if isinstance(folder, str | Path) else folder)]
        if not cards:
            raise ConfigError("Runtime: no folder was given.")
        self._outputs = {
            name: _open_outputs(head, name, card.folder / CARD)
            for card in cards
            for name, head in card.heads.items()
            if head.task not in WITHOUT_PREDICTIONS
        }
        self.card = join_cards(cards)
        if self.card.batch is None and not all(outputs.batched for outputs in self._outputs.values()):
            raise ExportError(
                f"{self.card.folder / CARD}: a graph with objects must take one image, not a batch. {ADVICE}"
            )
        self.runtime = choose_runtime(self.card, runtime)
        self._run = open_session(self.card, self.runtime, threads, device)

    def predict(self, image: Any) -> dict[str, Any]:
        """Predictions of one image at its own size, by head name.

        Args:
            image: A path, a PIL image, or a numpy array (H, W, 3) or (H, W); uint8, RGB.

        Returns:
            The predictions by head name.

        Raises:
            DataError: The image cannot be read, has an unsupported format, or is too small.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions of several images of any size; those that have one size in the graph's input share a run.

        Args:
            images: Images as for ``predict``.

        Returns:
            The predictions of each image by head name.

        Raises:
            DataError: An image cannot be read, has an unsupported format, or is too small.
            ConfigError: There are visual tokens only.
        """
        check_predicts(self)
        images_HWC = [to_image_array(image, f"image {index}") for index, image in enumerate(images)]
        found: list[dict[str, Any]] = [{} for _ in images_HWC]
        for scale in dict.fromkeys(self.card.heads[name].image_scale for name in self._outputs):
            heads = [name for name in self._outputs if self.card.heads[name].image_scale == scale]
            by_size: dict[tuple[int, int], list[int]] = {}
            for index, image_HWC in enumerate(images_HWC):
                by_size.setdefault(self._input_size(image_HWC, scale), []).append(index)
            for size, indices in by_size.items():
                resized_BhwC = np.stack([resize_image(images_HWC[index], size) for index in indices])
                for index, outputs in zip(indices, self.outputs(resized_BhwC, heads), strict=True):
                    for name in heads:
                        found[index][name] = self._outputs[name].prediction(outputs[name], images_HWC[index], size)
        return [{name: each[name] for name in self._outputs} for each in found]

    def outputs(
        self, image_BhwC: NDArray[np.uint8], heads: Sequence[str] | None = None
    ) -> list[dict[str, dict[str, NDArray[Any]]]]:
        """Outputs of the graph.

        Args:
            image_BhwC: Images of a size that the graph takes, (B, H, W, 3) uint8, RGB.
            heads: The heads; None: all.

        Returns:
            For each image, the outputs by head and name that predictions are made of, or all of them if there are no
            predictions. Shape, data type and unit are in the card: ``depth`` is (H, W) float32 in meters.

        Raises:
            DataError: The graph does not take images of this size.
            ExportError: The runtime failed.
        """
        self._check_size((image_BhwC.shape[1], image_BhwC.shape[2]))
        heads = list(self.card.heads) if heads is None else heads
        step = self.card.batch or max(1, len(image_BhwC))
        return [
            outputs
            for start in range(0, len(image_BhwC), step)
            for outputs in self._run_batch(image_BhwC[start : start + step], heads)
        ]

    def _run_batch(
        self, image_BhwC: NDArray[np.uint8], heads: Sequence[str]
    ) -> list[dict[str, dict[str, NDArray[Any]]]]:
        wanted = [(head, name) for head in heads for name in self._names(head)]
        images = image_BhwC if self.card.layout == "nhwc" else image_BhwC.transpose(0, 3, 1, 2)
        try:
            values = self._run(np.ascontiguousarray(images), [f"{head}.{name}" for head, name in wanted])
        except Exception as error:  # runtimes raise types of their own
            raise ExportError(
                f"{self.card.folder}: {PACKAGES[self.runtime]} failed on images of shape {images.shape} "
                f"({str(error)[:300]}). Export the bundle again."
            ) from error
        found: list[dict[str, dict[str, NDArray[Any]]]] = [{head: {} for head in heads} for _ in image_BhwC]
        for (head, name), value in zip(wanted, values, strict=True):
            for index, each in enumerate(found):
                batched = head not in self._outputs or self._outputs[head].batched
                if batched and len(value) != len(found):
                    raise ExportError(
                        f"{self.card.folder}: the graph returned {head}.{name} of shape {value.shape} for {len(found)} "
                        "images. Export the bundle again."
                    )
                each[head][name] = value[index] if batched else value
        for each in found:
            for head in heads:
                if head in self._outputs:
                    self._outputs[head].check(each[head])
        return found

    def _names(self, head: str) -> Sequence[str]:
        """The names of the outputs of a head that are read."""
        if head in self._outputs:
            return self._outputs[head].names
        return [name.removeprefix(f"{head}.") for name in self.card.heads[head].outputs]

    def _input_size(self, image_HWC: NDArray[np.uint8], scale: tuple[int, int] | None) -> tuple[int, int]:
        if self.card.size is not None:
            return self.card.size
        return fit_size(image_HWC.shape[:2], scale)

    def _check_size(self, size: tuple[int, int]) -> None:
        expected, least = self.card.size, self.card.graphs[self.runtime].smallest_side
        if expected is not None and size != expected:
            raise DataError(
                f"{self.card.folder} was exported for images of {expected[0]}x{expected[1]} (height x width), but one "
                f"is {size[0]}x{size[1]} after resizing. Export without --size, or use vitsplit.runtime.Runtime, "
                "which resizes every image to that size."
            )
        if expected is None and min(size) < least:
            raise DataError(
                f"{self.card.folder}: an image, or a window of it, has {size[0]}x{size[1]} pixels (height x width) in "
                f"the graph's input, whose sides must have at least {least}. Give a larger image."
            )


def check_predicts(runtime: Runtime) -> None:
    """Refuses a folder whose heads have no predictions.

    Raises:
        ConfigError: All heads are of ``WITHOUT_PREDICTIONS``.
    """
    if all(head.task in WITHOUT_PREDICTIONS for head in runtime.card.heads.values()):
        raise ConfigError(
            f"{runtime.card.folder} has visual tokens only, and no predictions: see `Runtime.outputs` of "
            "vitsplit.runtime, or use the bundle."
        )


def _open_outputs(head: HeadCard, name: str, where: Path) -> Outputs:
    if head.task not in OUTPUTS:
        raise ExportError(f"{where}: heads: {name}: unknown task {head.task!r}. Update vitsplit.")
    module, _, attribute = OUTPUTS[head.task].partition(":")
    kind: Any = getattr(importlib.import_module(module), attribute)
    outputs: Outputs = kind.from_description(head.description, f"{where}: heads: {name}: description")
    for output in outputs.names:
        if f"{name}.{output}" not in head.outputs:
            raise ExportError(
                f"{where}: heads: {name}: the output {name}.{output} is missing. Export the bundle again."
            )
    return outputs
