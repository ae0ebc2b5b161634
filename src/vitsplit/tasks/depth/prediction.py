"""The depth of an image, its picture and its files.

Shapes: H W pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitsplit.data.decoding import png_bytes
from vitsplit.tasks.depth.colormap import add_scale_bar, apply_colormap, display_range
from vitsplit.tasks.json_schema import NUMBER, SIZE, TEXT, Schema, list_schema, object_schema
from vitsplit.tasks.prediction import ColumnType, MaskForm, Prediction, ServedFormat

PNG_MAX = 65535


@dataclass(frozen=True)
class DepthPrediction(Prediction):
    """The depth of an image.

    Attributes:
        depth: (H, W) float32, meters, at the image's size.
        image: (H, W, 3) uint8, RGB.

    Example:
        >>> prediction = vitsplit.load("runs/depth").predict("image.jpg")["depth"]  # doctest: +SKIP
        >>> prediction.depth.min(), prediction.depth.max()  # meters  # doctest: +SKIP
        (0.71, 5.2)
    """

    depth: NDArray[np.float32]
    image: NDArray[np.uint8]

    served_formats: ClassVar[tuple[ServedFormat, ...]] = ("json", "png", "npz")
    json_schema: ClassVar[Schema] = object_schema(
        {
            "size": SIZE,
            "unit": {"const": "m"},
            "scale": NUMBER,
            "range": list_schema(NUMBER) | {"minItems": 2, "maxItems": 2},
            "png": TEXT,
        }
    )
    array_types: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {"depth": ("float32", (-1, -1))}
    # The PNG that `save` writes, and its meters per unit.
    column_types: ClassVar[Mapping[str, ColumnType]] = {"png": "bytes", "scale": "number"}

    def overlay(self) -> Image.Image:
        """The color-mapped depth (near is bright, far is dark), at the image's size."""
        return apply_colormap(self.depth, self.depth > 0, display_range(self.depth))

    def picture(self) -> Image.Image:
        """The color-mapped depth with a scale bar in meters."""
        return add_scale_bar(self.overlay(), display_range(self.depth))

    def png_scale(self) -> float:
        """Meters per unit of the PNG: a millimeter, or a power of ten times that if the maximum depth requires it."""
        scale = 0.001
        while self.depth.max() > scale * PNG_MAX:
            scale *= 10
        return scale

    def png(self, compress_level: int = 6) -> bytes:
        """The depth as a PNG file of 16 bits, see ``save``.

        Args:
            compress_level: From 0 (fast) to 9 (small).

        Returns:
            The contents of the file.
        """
        scale = self.png_scale()
        text = PngInfo()
        text.add_text("depth_scale", f"{scale:g}")
        text.add_text("Comment", f"depth in meters = value * {scale:g}")
        units_HW = np.rint(self.depth / scale).clip(1, PNG_MAX).astype(np.uint16)
        return png_bytes(Image.fromarray(units_HW), compress_level, text)

    def to_json(self, masks: MaskForm = "rle") -> dict[str, Any]:
        """Size, unit, range, and ``png()`` in base64 with ``scale`` meters per unit.

        Args:
            masks: Not used: there are no masks.

        Returns:
            JSON-serializable, of the schema ``json_schema``.
        """
        return {
            "size": list(self.depth.shape),
            "unit": "m",
            "scale": self.png_scale(),
            "range": [float(self.depth.min()), float(self.depth.max())],
            "png": base64.b64encode(self.png(compress_level=1)).decode("ascii"),
        }

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path, Path]:
        """Writes the depth in three formats.

        Args:
            folder: Output folder; created if missing.
            name: Prefix of the file names.

        Returns:
            ``NAME_depth.npy``: float32 meters. ``NAME_depth.png``: 16 bits, with ``png_scale`` meters per unit (up to
            65.535 m in millimeters), stored in its text chunk ``depth_scale``; 0 means invalid and is never used.
            ``NAME_depth.jpg``: color-mapped, with a scale bar.
        """
        npy_path, png_path, jpg_path = (Path(folder) / f"{name}_depth.{kind}" for kind in ("npy", "png", "jpg"))
        npy_path.parent.mkdir(parents=True, exist_ok=True)
        np.save(npy_path, self.depth)
        png_path.write_bytes(self.png())
        self.picture().save(jpg_path, quality=92)
        return npy_path, png_path, jpg_path

    def record(self) -> dict[str, Any]:
        """The fields of a table's row, see ``column_types``."""
        return {"png": self.png(), "scale": self.png_scale()}
