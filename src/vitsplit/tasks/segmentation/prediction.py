"""Semantic segmentation of an image, its picture and its files.

Shapes: H W pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.data.classes import ClassList
from vitsplit.data.decoding import decode_image, image_kind, png_bytes
from vitsplit.data.mask_coding import encode_labels
from vitsplit.errors import DataError
from vitsplit.tasks.json_schema import CLASSES, INTEGER, MASK, NUMBER, SIZE, TEXT, Schema, list_schema, object_schema
from vitsplit.tasks.prediction import ColumnType, MaskForm, Prediction, ServedFormat

OVERLAY_ROWS = 256

UNCERTAINTY_COLORS = "magma"
"""Color map of matplotlib."""


def read_results(path: Path) -> list[dict[str, Any]]:
    """The entries of ``coco_results`` from a mask of class ids.

    Raises:
        DataError: The file cannot be read, or its values are no class ids.
    """
    image = decode_image(path)
    if image.mode not in ("L", "P"):
        raise DataError(f"{path}: not a mask of class ids, but {image_kind(image)}. Remove it, and repeat the command.")
    return _results(np.asarray(image), path.name)


def _results(mask_HW: NDArray[np.uint8], image_id: int | str) -> list[dict[str, Any]]:
    return [
        {"image_id": image_id, "category_id": index, "segmentation": mask, "score": 1.0}
        for index, mask in encode_labels(mask_HW).items()
    ]


@dataclass(frozen=True)
class SegmentationPrediction(Prediction):
    """A segmented image.

    Attributes:
        mask: (H, W) uint8, class ids at the image's size.
        classes: Names and colors of the classes.
        image: (H, W, 3) uint8, RGB.
        confidence: (H, W) float32, the probability of each pixel's class, calibrated with the bundle's temperature;
            None for a mask that is not a model's.
        unfamiliarity: (H, W) float32, the cosine distance of the frozen features to those of training images, 0 to 2;
            None for exported graphs, and unless the bundle was trained with ``--unfamiliarity``.

    Example:
        >>> prediction = vitsplit.load("runs/rooms").predict("image.jpg")["segmentation"]  # doctest: +SKIP
        >>> prediction.mask.shape, prediction.shares()  # doctest: +SKIP
        ((480, 640), {'wall': 0.51, 'floor': 0.3, 'chair': 0.19})
    """

    mask: NDArray[np.uint8]
    classes: ClassList
    image: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None = None
    unfamiliarity: NDArray[np.float32] | None = None

    served_formats: ClassVar[tuple[ServedFormat, ...]] = ("json", "png", "npz", "coco")
    json_schema: ClassVar[Schema] = object_schema(
        {
            "size": SIZE,
            "classes": CLASSES,
            "segments": list_schema(object_schema({"class": INTEGER, "share": NUMBER}, {"mask": MASK})),
        },
        {"png": TEXT},
    )
    array_types: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {"mask": ("uint8", (-1, -1))}
    # The PNG that `save` writes.
    column_types: ClassVar[Mapping[str, ColumnType]] = {"png": "bytes"}
    label_readers: ClassVar[Mapping[str, Callable[[Path], list[Any]]]] = {
        "_mask.png": read_results,
        "_mask.tif": read_results,
    }
    uncertainty_meaning: ClassVar[tuple[str, str] | None] = (
        "mean of 1 - confidence over the pixels",
        "1 - confidence: light pixels are uncertain",
    )

    def color_mask(self) -> Image.Image:
        """The mask as a palette image: pixel values are class ids, with the class colors as the palette."""
        picture = Image.fromarray(self.mask)
        picture.putpalette([value for color in self.classes.colors for value in color])
        return picture

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The image blended with the class colors.

        Args:
            opacity: Weight of the colors, 0 to 1.

        Returns:
            RGB picture at the image's size.
        """
        return draw_overlay(self.mask, self.classes, self.image, opacity)

    def shares(self) -> dict[str, float]:
        """Class name to fraction of the pixels, largest first, for the classes present."""
        counts = np.bincount(self.mask.flatten(), minlength=len(self.classes.names)) / self.mask.size
        found = sorted(zip(self.classes.names, counts.tolist(), strict=True), key=lambda pair: -pair[1])
        return {name: share for name, share in found if share > 0}

    def uncertainty(self) -> float:
        """Mean of 1 - confidence over the pixels, 0 to 1; the confidence must not be None."""
        assert self.confidence is not None
        return 1 - float(self.confidence.mean())

    def uncertainty_picture(self) -> Image.Image:
        """The map of 1 - confidence, light where it is uncertain, at the image's size."""
        from matplotlib import colormaps

        assert self.confidence is not None
        colors_HWC = colormaps[UNCERTAINTY_COLORS](1 - self.confidence)[..., :3]
        return Image.fromarray((colors_HWC * 255).round().astype(np.uint8))

    def png(self, compress_level: int = 6) -> bytes:
        """``color_mask`` as a PNG file.

        Args:
            compress_level: From 0 (fast) to 9 (small).

        Returns:
            The contents of the file.
        """
        return png_bytes(self.color_mask(), compress_level)

    def to_json(self, masks: MaskForm = "rle") -> dict[str, Any]:
        """Size, classes, and ``segments``: the classes present with their shares, largest first.

        Args:
            masks: Whether every segment has a mask in COCO's run-length encoding, or ``png`` is ``png()`` in base64.

        Returns:
            JSON-serializable, of the schema ``json_schema``.
        """
        indices = {name: index for index, name in enumerate(self.classes.names)}
        segments: list[dict[str, Any]] = [
            {"class": indices[name], "share": round(share, 6)} for name, share in self.shares().items()
        ]
        found: dict[str, Any] = {"size": list(self.mask.shape), "classes": self.classes.to_json(), "segments": segments}
        if masks == "png":
            return found | {"png": base64.b64encode(self.png(compress_level=1)).decode("ascii")}
        encoded = encode_labels(self.mask)
        for segment in segments:
            segment["mask"] = encoded[segment["class"]]
        return found

    def coco_results(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of COCO's results format: one per class present, whose ``category_id`` is its index.

        Args:
            image_id: The id of the image in the entries.

        Returns:
            The entries, with masks in run-length encoding.
        """
        return _results(self.mask, image_id)

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes mask and overlay to files.

        Args:
            folder: Output folder; created if missing.
            name: Prefix of the file names.

        Returns:
            ``NAME_mask.png``, class ids with a palette, and ``NAME_overlay.jpg``.
        """
        mask_path, overlay_path = Path(folder) / f"{name}_mask.png", Path(folder) / f"{name}_overlay.jpg"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        mask_path.write_bytes(self.png())
        self.overlay().save(overlay_path, quality=92)
        return mask_path, overlay_path

    def record(self) -> dict[str, Any]:
        """The fields of a table's row, see ``column_types``."""
        return {"png": self.png()}


def draw_overlay(
    mask_HW: NDArray[np.uint8], classes: ClassList, image_HWC: NDArray[np.uint8], opacity: float = 0.55
) -> Image.Image:
    """An image blended with the class colors."""
    palette = opacity * np.array(classes.colors, dtype=np.float32)
    mixed = np.empty_like(image_HWC)
    for top in range(0, len(mixed), OVERLAY_ROWS):  # a few rows at a time, as float32 takes four times the memory
        rows = slice(top, top + OVERLAY_ROWS)
        mixed[rows] = (np.float32(1 - opacity) * image_HWC[rows] + palette[mask_HW[rows]]).round()
    return Image.fromarray(mixed)
