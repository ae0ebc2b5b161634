"""The objects in an image, their picture and their file.

Shapes: H W pixels, N objects, m bins per side of a mask. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.data.classes import ClassList
from vitsplit.data.decoding import png_bytes
from vitsplit.data.mask_coding import encode, paste
from vitsplit.errors import DataError
from vitsplit.files import LARGE_FILE, read_json, shown
from vitsplit.tasks.detection.draw import draw_objects
from vitsplit.tasks.json_schema import CLASSES, INTEGER, MASK, NUMBER, SIZE, Schema, list_schema, object_schema
from vitsplit.tasks.prediction import ColumnType, MaskForm, Prediction, ServedFormat

DRAWN_SCORE = 0.5
"""Objects with a lower score are not drawn."""
UNCERTAIN_SCORES = (0.2, 0.8)
"""Scores between which objects are drawn as uncertain."""


def read_results(path: Path) -> list[Any]:
    """The entries of a file of COCO results, which are not checked.

    Raises:
        DataError: The file cannot be read, or has no list.
    """
    advice = "Remove it, and repeat the command."
    found = read_json(path, limit=LARGE_FILE, advice=advice)
    if not isinstance(found, list):
        raise DataError(f"{path} has {shown(found)}, not a list of objects. {advice}")
    return found


@dataclass(frozen=True)
class DetectionPrediction(Prediction):
    """The objects in an image, by descending score.

    Attributes:
        boxes: (N, 4) float32: x1, y1, x2, y2 in pixels of the image.
        labels: (N,) int64, class indices from 0.
        scores: (N,) float32, in 0..1.
        mask_bins: (N, m, m) float32, mask probabilities on m x m bins over each box; None without masks. Masks at the
            image's size are computed on demand, since a hundred of them need a lot of memory.
        classes: Names and colors of the classes.
        category_ids: The id of each class in the training annotations.
        image: (H, W, 3) uint8, RGB.

    Example:
        >>> prediction = vitsplit.load("runs/objects").predict("image.jpg")["detection"]  # doctest: +SKIP
        >>> prediction.boxes, prediction.scores, prediction.masks  # doctest: +SKIP
        >>> [prediction.classes.names[label] for label in prediction.labels]  # doctest: +SKIP
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    mask_bins: NDArray[np.float32] | None
    classes: ClassList
    category_ids: tuple[int, ...]
    image: NDArray[np.uint8]

    served_formats: ClassVar[tuple[ServedFormat, ...]] = ("json", "png", "npz", "coco")
    json_schema: ClassVar[Schema] = object_schema(
        {
            "size": SIZE,
            "classes": CLASSES,
            "category_ids": list_schema(INTEGER),
            "objects": list_schema(
                object_schema({"class": INTEGER, "score": NUMBER, "box": list_schema(NUMBER)}, {"mask": MASK})
            ),
        }
    )
    array_types: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {
        "boxes": ("float32", (-1, 4)),
        "labels": ("int64", (-1,)),
        "scores": ("float32", (-1,)),
        "mask_bins": ("float32", (-1, -1, -1)),
    }
    # Of each object what `save` writes: the box (x, y, width, height), and of its mask the `counts` of COCO's
    # run-length encoding, whose `size` is that of the image; null without masks.
    column_types: ClassVar[Mapping[str, ColumnType]] = {
        "boxes": "boxes",
        "scores": "numbers",
        "category_ids": "integers",
        "categories": "texts",
        "masks": "texts",
    }
    label_readers: ClassVar[Mapping[str, Callable[[Path], list[Any]]]] = {"_detections.json": read_results}
    uncertainty_meaning: ClassVar[tuple[str, str] | None] = (
        "sum of (1 - |2 score - 1|)^2 over the objects",
        "objects with scores from 0.2 to 0.8",
    )

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """(N, H, W) bool; None without masks. Computed at every access."""
        if self.mask_bins is None:
            return None
        return np.stack([*self.each_mask()]) if len(self.boxes) else np.zeros((0, *self.image.shape[:2]), dtype=bool)

    def each_mask(self) -> Iterator[NDArray[np.bool_]]:
        """The masks one by one, which takes less memory than ``masks``.

        Yields:
            (H, W) bool.

        Raises:
            ValueError: The prediction has boxes only.
        """
        if self.mask_bins is None:
            raise ValueError("this prediction has boxes only")
        for bins_mm, box_4 in zip(self.mask_bins, self.boxes, strict=True):
            yield paste(bins_mm, box_4, (self.image.shape[0], self.image.shape[1]))

    def overlay(self, min_score: float = DRAWN_SCORE) -> Image.Image:
        """The image with masks, boxes, names and scores of objects with at least a score.

        Args:
            min_score: The score, 0 to 1.

        Returns:
            RGB picture at the image's size.
        """
        drawn = self.strongest(min_score)
        captions = [
            f"{self.classes.names[label]} {score:.2f}" for label, score in zip(drawn.labels, drawn.scores, strict=True)
        ]
        colors = [self.classes.colors[label] for label in drawn.labels]
        masks = None if drawn.mask_bins is None else drawn.each_mask()
        return draw_objects(self.image, drawn.boxes, captions, colors, masks)

    def strongest(self, min_score: float) -> DetectionPrediction:
        """The prediction restricted to objects with at least a score.

        Args:
            min_score: The score, 0 to 1.

        Returns:
            A prediction of the same image.
        """
        return self._between(min_score, np.inf)

    def _between(self, low: float, high: float) -> DetectionPrediction:
        chosen_N = (self.scores >= low) & (self.scores <= high)
        return replace(
            self,
            boxes=self.boxes[chosen_N],
            labels=self.labels[chosen_N],
            scores=self.scores[chosen_N],
            mask_bins=None if self.mask_bins is None else self.mask_bins[chosen_N],
        )

    def uncertainty(self) -> float:
        """Sum over the objects of (1 - m)^2, where m is the margin between the score p and 1 - p.

        The criterion "1-vs-2" with the aggregation "sum" of Brust, Kaeding and Denzler, Active Learning for Deep Object
        Detection, VISAPP 2019, with all other classes as the second one. Images with many objects whose scores are
        around 0.5 have the most.
        """
        margin_N = np.abs(2 * self.scores.astype(np.float64) - 1)
        return float(((1 - margin_N) ** 2).sum())

    def uncertainty_picture(self) -> Image.Image:
        """The image with the objects of uncertain scores, at the image's size."""
        low, high = UNCERTAIN_SCORES
        return self._between(low, high).overlay(low)

    def coco_results(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of COCO's results format, with the name of the ``category``.

        Args:
            image_id: The id of the image in the entries.

        Returns:
            The entries. ``bbox`` is (x, y, width, height) in pixels; ``segmentation`` is there with masks.
        """
        corners = self.boxes.astype(np.float64)
        entries: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "category": self.classes.names[label],
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(score),
            }
            for (x1, y1, x2, y2), label, score in zip(corners.tolist(), self.labels, self.scores, strict=True)
        ]
        if self.mask_bins is not None:
            for entry, mask_HW in zip(entries, self.each_mask(), strict=True):
                entry["segmentation"] = encode(mask_HW)
        return entries

    def png(self, compress_level: int = 6) -> bytes:
        """``overlay`` as a PNG file.

        Args:
            compress_level: From 0 (fast) to 9 (small).

        Returns:
            The contents of the file.
        """
        return png_bytes(self.overlay(), compress_level)

    def to_json(self, masks: MaskForm = "rle") -> dict[str, Any]:
        """Size, classes, ids of the categories, and ``objects``.

        Args:
            masks: Not used: masks are in COCO's run-length encoding, since objects overlap.

        Returns:
            JSON-serializable, of the schema ``json_schema``.
        """
        objects: list[dict[str, Any]] = [
            {"class": int(label), "score": float(score), "box": box}
            for label, score, box in zip(self.labels, self.scores, self.boxes.tolist(), strict=True)
        ]
        if self.mask_bins is not None:
            for each, mask_HW in zip(objects, self.each_mask(), strict=True):
                each["mask"] = encode(mask_HW)
        return {
            "size": list(self.image.shape[:2]),
            "classes": self.classes.to_json(),
            "category_ids": list(self.category_ids),
            "objects": objects,
        }

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes objects and overlay to files.

        Args:
            folder: Output folder; created if missing.
            name: Prefix of the file names.

        Returns:
            ``NAME_detections.json``, COCO results with class names, and ``NAME_overlay.jpg``. The image id is NAME,
            converted to a number if possible, as in COCO's file names.
        """
        json_path, overlay_path = Path(folder) / f"{name}_detections.json", Path(folder) / f"{name}_overlay.jpg"
        json_path.parent.mkdir(parents=True, exist_ok=True)
        stem = Path(name).name
        entries = self.coco_results(int(stem) if stem.isdecimal() else stem)
        json_path.write_text(json.dumps(entries) + "\n", encoding="utf-8")
        self.overlay().save(overlay_path, quality=92)
        return json_path, overlay_path

    def record(self) -> dict[str, Any]:
        """The fields of a table's row, see ``column_types``."""
        entries = self.coco_results("")
        return {
            "boxes": [entry["bbox"] for entry in entries],
            "scores": [entry["score"] for entry in entries],
            "category_ids": [entry["category_id"] for entry in entries],
            "categories": [entry["category"] for entry in entries],
            "masks": None if self.mask_bins is None else [entry["segmentation"]["counts"] for entry in entries],
        }
