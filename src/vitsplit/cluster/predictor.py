"""``Predictor``: bundles as a function from a table with images to a table with predictions.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vitsplit.cluster.records import Record, head_types, to_columns
from vitsplit.data.decoding import decode_bytes
from vitsplit.data.images import read_image, to_image_tensor
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.asking import check_questions, vqa_heads
from vitsplit.inference.batches import batch_limit, batches, in_background
from vitsplit.inference.predictor import Predictor as LoadedPredictor
from vitsplit.inference.sources import find_source
from vitsplit.inference.strips import LARGE_PIXELS

IMAGE_COLUMNS = ("image", "bytes", "path")
"""Names of columns that have images, in order of preference."""
THREADS = 2
"""Least number of threads that read, and that encode."""

Read = Callable[[], Tensor]
"""Reads an image, ``image_CHW`` uint8, or raises ``DataError``."""


class Predictor:
    """Bundles as a picklable callable class on batches of a table, for ``map_batches`` of Ray Data or Daft's ``@cls``.

    Every head gives a column of its name, a struct: for segmentation ``png``, of class ids; for depth ``png``,
    with 16 bits and ``scale`` meters per unit; for detection ``boxes`` (x, y, width, height), ``scores``,
    ``category_ids``, ``categories`` and ``masks`` (``counts`` of COCO's run-length encoding); for visual question
    answering ``questions`` and ``answers``. These are the contents of the files that ``vitsplit predict`` writes.

    An image that cannot be read has null in these columns, and the reason in ``error``.

    The bundles are loaded on construction. A pickled copy has the arguments only, and loads them at its first call.

    Args:
        bundles: Run or bundle folders, a mapping from names to them, or an exported folder, at paths that all
            processes see.
        column: Column of the images: encoded bytes, paths, arrays (H, W, 3), or structs of ``bytes`` and ``path``;
            None: the first of ``image``, ``bytes`` and ``path``.
        questions: Questions about every image, for bundles of visual question answering.
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.
        batch_size: Maximum number of images of one size per pass; None: 1 on a CPU, up to 8 on a GPU.
        options: See ``vitsplit.load``, such as ``device`` and ``precision``.

    Raises:
        VitsplitError: As ``vitsplit.load``; or questions are missing or not applicable.

    Example:
        >>> table = ray.data.read_binary_files("photos", include_paths=True)  # doctest: +SKIP
        >>> found = table.map_batches(  # doctest: +SKIP
        ...     Predictor, fn_constructor_args=[["runs/rooms", "runs/depth"]], batch_size=64, concurrency=2
        ... )
        >>> found.write_parquet("predictions")  # doctest: +SKIP
    """

    def __init__(
        self,
        bundles: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
        *,
        column: str | None = None,
        questions: Sequence[str] = (),
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        self.bundles = [bundles] if isinstance(bundles, str | Path) else bundles
        self.column = column
        self.questions = questions
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.options = options
        self._load()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_model": None}

    def ids(self) -> dict[str, str]:
        """Identification of the bundles as they are now, see ``Source``."""
        return find_source(self.bundles, **self.options).ids()

    def _load(self) -> LoadedPredictor:
        model = find_source(self.bundles, **self.options).load()
        cards = {name: head.card for name, head in model.items()}
        self.types, self._asked = head_types(cards), vqa_heads(cards)
        if bool(self._asked) != bool(self.questions):
            raise ConfigError("Questions require a bundle for vqa, and such a bundle requires questions.")
        check_questions(self.questions)
        self._model: LoadedPredictor | None = model
        return model

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predictions of a batch.

        Args:
            batch: Column names to sequences of equal length, such as numpy arrays.

        Returns:
            The columns of ``batch``, without that of the images unless they are paths; one column per head; ``height``
            and ``width`` in pixels; and ``error``.

        Raises:
            ConfigError: A column is missing, or two have the same name.
        """
        column = self.column or next((name for name in IMAGE_COLUMNS if name in batch), None)
        if column is None or column not in batch:
            raise ConfigError(
                f"The table has no column {column or ' or '.join(IMAGE_COLUMNS)} (columns: {', '.join(batch)}). Name "
                "the column of the images."
            )
        images = batch[column]
        paths = any(isinstance(image, str) for image in images)
        kept = {name: values for name, values in batch.items() if name != column or paths}
        found = to_columns(self.records([functools.partial(to_image, value) for value in images]), self.types)
        if both := kept.keys() & found.keys():
            raise ConfigError(f"The column {sorted(both)[0]} exists already. Rename it, or the head.")
        return kept | found

    def records(self, images: Sequence[Read], threads: int = THREADS) -> list[Record]:
        """Predictions of several images, in their order.

        Args:
            images: Functions that read them, which are called in threads.
            threads: Number of threads that read, and that encode.

        Returns:
            One record per image, with the predictions' encoded fields or the error.
        """
        model = self._model or self._load()
        found: dict[int, Record] = {}

        def read(numbered: tuple[int, Read]) -> tuple[int, Tensor | Exception]:
            index, image = numbered
            try:
                return index, _checked(image())
            except (DataError, MemoryError) as error:
                return index, error

        def readable(results: Iterable[tuple[int, Tensor | Exception]]) -> Iterator[tuple[int, Tensor]]:
            for index, image in results:
                if isinstance(image, Exception):
                    found[index] = Record(error=_message(image))
                else:
                    yield index, image

        def predicted(groups: Iterable[list[tuple[int, Tensor]]]) -> Iterator[tuple[int, Any, tuple[int, int]]]:
            for group in groups:
                predictions = self._predict(model, [image_CHW for _, image_CHW in group])
                for (index, image_CHW), prediction in zip(group, predictions, strict=True):
                    yield index, prediction, (image_CHW.shape[1], image_CHW.shape[2])

        device = model.backbone.mean_C11.device
        ahead = max(threads, batch_limit(self.batch_size, device, 1, 1))
        groups = batches(
            readable(in_background(read, enumerate(images), threads=threads, ahead=ahead)),
            lambda height, width: batch_limit(self.batch_size, device, height, width),
            waiting=2 * ahead,
        )
        for index, record in in_background(_record, predicted(groups), threads=threads, ahead=ahead):
            found[index] = record
        return [found[index] for index in range(len(images))]

    def _predict(self, model: LoadedPredictor, images_CHW: list[Tensor]) -> Sequence[Mapping[str, Any] | Exception]:
        """Predictions of images of one size; an exception for an image that cannot be predicted, such as for memory."""
        try:
            found = model.predict_batch(torch.stack(images_CHW))
            for predictions in found:
                for head in self._asked:
                    predictions[head].ask_many(self.questions, max_new_tokens=self.max_new_tokens)
            return found
        except Exception as error:  # of one image, which must not end the prediction of all others
            if len(images_CHW) == 1:
                return [error]
        return [each for image_CHW in images_CHW for each in self._predict(model, [image_CHW])]


def _record(predicted: tuple[int, Mapping[str, Any] | Exception, tuple[int, int]]) -> tuple[int, Record]:
    index, predictions, size = predicted
    if isinstance(predictions, Exception):
        return index, Record(size, error=_message(predictions))
    try:
        return index, Record(size, {name: prediction.record() for name, prediction in predictions.items()})
    except Exception as error:  # as above
        return index, Record(size, error=_message(error))


def _message(error: Exception) -> str:
    """The message of an error; that of ``MemoryError`` is often empty."""
    text = str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    return text.encode("utf-8", "backslashreplace").decode()  # a table has no surrogates, as paths may


def _checked(image_CHW: Tensor) -> Tensor:
    height, width = image_CHW.shape[1:]
    if height * width > LARGE_PIXELS:
        raise DataError(
            f"{width}x{height} pixels: more than {LARGE_PIXELS / 1e6:.0f} million are predicted in tiles. Use "
            "`vitsplit predict` without --engine."
        )
    return image_CHW


def to_image(value: Any, name: str = "image", folder: Path = Path()) -> Tensor:
    """The image of a cell, ``image_CHW`` uint8.

    Args:
        value: Encoded bytes, a path, an array (H, W, 3), or a mapping of ``bytes`` and ``path``, as in data sets of the
            hub.
        name: Name of the image for errors.
        folder: Where relative paths start.

    Raises:
        DataError: It cannot be read or decoded.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    if isinstance(value, bytes):
        return to_image_tensor(decode_bytes(value, name), name)
    if isinstance(value, str):
        return read_image(folder / value)
    if isinstance(value, np.ndarray):
        return to_image_tensor(value, name)
    raise DataError(
        f"{name}: cannot use a {type(value).__name__} as an image. Give bytes, a path or an array (H, W, 3)."
    )


def table_of(ids: Sequence[str], records: Sequence[Record], types: Mapping[str, pa.DataType]) -> pa.Table:
    """The table of several images, with their ids as the first column."""
    return pa.table({"id": pa.array(ids, pa.string())} | to_columns(records, types))
