"""A prediction on one image, and what it can be saved as.

Shapes: H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.tasks.json_schema import Schema

ServedFormat = Literal["json", "png", "npz", "coco"]
"""Form of a prediction over HTTP."""
MaskForm = Literal["rle", "png"]
"""Form of a segmentation's masks in JSON."""
ColumnType = Literal["bytes", "number", "numbers", "integers", "texts", "boxes"]
"""Type of a field of a table's row: ``boxes`` are lists of numbers, the other plural forms are lists."""


class Prediction(ABC):
    """A prediction on one image. Its class declares its forms, for the server, tables and label tools alike.

    All have ``overlay`` and ``save``; a class that declares a form has the methods of that form.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        served_formats: Its forms over HTTP: ``json`` (``to_json(masks)``), ``png`` (``png(compress_level)``), ``npz``
            (``arrays()``) and ``coco`` (``coco_results(image_id)``).
        json_schema: The schema of ``json``.
        array_types: Data type and shape (-1: any) of the attributes that are the arrays of ``npz``.
        column_types: Fields of its row in a table (``record()``), and their types; empty: it has none.
        label_readers: For label tools: endings of the file of ``save`` (or ``predict_large``) with the masks or boxes,
            and how it is read as entries of ``coco_results``, which are not checked. Empty: there are none.
        uncertainty_meaning: For ``vitsplit rank``: what ``uncertainty()`` is, and what ``uncertainty_picture()`` shows.
            None: there are neither.

    Example:
        >>> for name, prediction in vitsplit.load("runs/all").predict("image.jpg").items():  # doctest: +SKIP
        ...     prediction.save("predictions", f"image_{name}")
    """

    image: NDArray[np.uint8]
    served_formats: ClassVar[tuple[ServedFormat, ...]] = ()
    json_schema: ClassVar[Schema] = {}
    array_types: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {}
    column_types: ClassVar[Mapping[str, ColumnType]] = {}
    label_readers: ClassVar[Mapping[str, Callable[[Path], list[Any]]]] = {}
    uncertainty_meaning: ClassVar[tuple[str, str] | None] = None

    @abstractmethod
    def overlay(self) -> Image.Image:
        """The image with the prediction drawn on it, at the image's size."""

    @abstractmethod
    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, ...]:
        """Writes the prediction and the overlay to files.

        Args:
            folder: Output folder; created if missing.
            name: Prefix of the file names.

        Returns:
            The paths.
        """

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of ``array_types``, without those that are None.

        Returns:
            By name; shape and data type are those of ``array_types``, such as (H, W) uint8 class ids.
        """
        found = {name: getattr(self, name) for name in self.array_types}
        return {name: array for name, array in found.items() if array is not None}
