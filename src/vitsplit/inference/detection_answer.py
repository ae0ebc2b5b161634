"""Detections of large images: collects the objects of all tiles, merges them, and writes them.

Shapes: B batch, C channels, H W pixels of a tile, N objects, h w pixels of an object's mask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from vitsplit.data.mask_coding import compress, encode, paste
from vitsplit.errors import DataError
from vitsplit.inference.across_tiles import MergedObject, TileObjects, cut_sides, merge_tiles
from vitsplit.inference.tiling import Grid
from vitsplit.inference.writers import OVERLAY_SIDE, RowFile, Thumbnail
from vitsplit.tasks.base import Forward
from vitsplit.tasks.detection.masks import rasterize
from vitsplit.tasks.detection.prediction import DRAWN_SCORE

MAX_RUN_PIXELS = 1 << 32
"""Limit of COCO's run lengths, which have 32 bits."""
_OPACITY = 0.4


class CropMask:
    """The mask of an object, stored as the run-length encoding of a crop of the image.

    Args:
        mask_hw: bool.
        left: Left border of the crop in the image, in pixels.
        top: Top border of the crop in the image, in pixels.
    """

    def __init__(self, mask_hw: NDArray[np.bool_], left: int, top: int) -> None:
        self.left, self.top = left, top
        self._encoded = encode(mask_hw)

    def pixels(self) -> NDArray[np.bool_]:
        """(h, w) bool."""
        return rasterize(self._encoded, *self._encoded["size"]).astype(bool)

    @classmethod
    def union(cls, parts: Sequence[CropMask]) -> CropMask:
        """The union of several masks."""
        if len(parts) == 1:
            return parts[0]
        pixels = [part.pixels() for part in parts]
        left, top = min(part.left for part in parts), min(part.top for part in parts)
        right = max(part.left + mask_hw.shape[1] for part, mask_hw in zip(parts, pixels, strict=True))
        bottom = max(part.top + mask_hw.shape[0] for part, mask_hw in zip(parts, pixels, strict=True))
        whole_hw = np.zeros((bottom - top, right - left), dtype=bool)
        for part, mask_hw in zip(parts, pixels, strict=True):
            y, x = part.top - top, part.left - left
            whole_hw[y : y + mask_hw.shape[0], x : x + mask_hw.shape[1]] |= mask_hw
        return cls(whole_hw, left, top)

    def rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """COCO's compressed run-length encoding in the whole image (height and width), JSON-compatible.

        Computed from the runs of the crop, without a mask of the whole image in memory.
        """
        mask_hw = self.pixels()
        height, width = size
        edges_hw = np.diff(np.pad(mask_hw, ((1, 1), (0, 0))).astype(np.int8), axis=0)
        columns, starts = np.nonzero((edges_hw == 1).T)
        _, ends = np.nonzero((edges_hw == -1).T)
        offsets = (columns + self.left) * height + self.top
        bounds = np.stack([offsets + starts, offsets + ends], 1).ravel()
        # Runs that continue in the next column are separated by runs of length 0, which are valid in COCO's format.
        counts = np.diff(np.concatenate([[0], bounds, [height * width]]))
        return {"size": [height, width], "counts": compress(counts)}


class DetectionTileWriter:
    """Predicts the tiles of an image with one detection task, merges the objects, and writes the result.

    Args:
        task: The task, without resizing.
        forward: The forward pass.
        grid: The tiles.
        own_size: Height and width of the image; boxes and masks are in its pixels.
        stem: Folder and prefix of the file names.

    Raises:
        DataError: The image is too large for COCO's masks.
    """

    def __init__(self, task: Any, forward: Forward, grid: Grid, own_size: tuple[int, int], stem: Path) -> None:
        if task.masks and own_size[0] * own_size[1] >= MAX_RUN_PIXELS:
            raise DataError(
                f"{stem.name}: {own_size[1]}x{own_size[0]} pixels exceed the limit of COCO's masks (2^32). "
                "Split the image."
            )
        self.task, self.forward, self.grid, self.own_size = task, forward, grid, own_size
        size = (grid.rows.length, grid.columns.length)
        self._scale_4 = np.array([own_size[1] / size[1], own_size[0] / size[0]] * 2)
        self._file = RowFile(stem.with_name(f"{stem.name}_detections.json"))
        self._overlay_path = stem.with_name(f"{stem.name}_overlay.jpg")
        self._image_id = stem.name
        self._small_image = Thumbnail(size, OVERLAY_SIDE, average=True)
        self._parts: list[TileObjects] = []
        self._masks: list[CropMask] = []

    def add(self, row: int, columns: Sequence[int], image_BCHW: Tensor) -> None:
        """Predicts tiles of a row."""
        for column, prediction in zip(columns, self.task.predict(self.forward, image_BCHW), strict=True):
            left, top = self.grid.columns.starts[column], self.grid.rows.starts[row]
            count = len(prediction.labels)
            seen_4 = np.array([left, top, left + self.grid.tile[1], top + self.grid.tile[0]]) * self._scale_4
            boxes_N4 = (prediction.boxes.astype(np.float64) + np.array([left, top, left, top])) * self._scale_4
            cut_N4 = cut_sides(boxes_N4, seen_4, self.own_size)
            tiles_N2 = np.tile(np.array([[row, column]]), (count, 1))
            seen_N4 = np.tile(seen_4, (count, 1))
            scores_N = prediction.scores.astype(np.float64)
            self._parts.append(TileObjects(boxes_N4, prediction.labels, scores_N, tiles_N2, seen_N4, cut_N4))
            if prediction.mask_bins is not None:
                self._masks += map(self._crop_mask, prediction.mask_bins, boxes_N4)

    def finish_row(self, row: int, image_CHW: Tensor) -> None:
        """Adds rows to the scaled-down image of the overlay."""
        self._small_image.write(image_CHW.permute(1, 2, 0).numpy())

    def close(self) -> tuple[Path, ...]:
        """Merges the objects, writes both files and returns their paths."""
        found = TileObjects(*(np.concatenate(column) for column in zip(*map(_columns, self._parts), strict=True)))
        objects = merge_tiles(found, self.task.config.nms_threshold)
        self._write_json(objects)
        self._overlay(objects).save(self._overlay_path, quality=92)
        return self._file.finish(), self._overlay_path

    def discard(self) -> None:
        """Removes incomplete files."""
        self._file.discard()

    def _crop_mask(self, bins_mm: NDArray[np.float32], box_4: NDArray[np.float64]) -> CropMask:
        left, top = (int(side) for side in np.floor(box_4[:2]))
        right, bottom = (int(side) for side in np.ceil(box_4[2:]))
        local_4 = (box_4 - np.array([left, top, left, top])).astype(np.float32)
        return CropMask(paste(bins_mm, local_4, (max(1, bottom - top), max(1, right - left))), left, top)

    def _mask(self, merged: MergedObject) -> CropMask:
        return CropMask.union([self._masks[part] for part in merged.parts])

    def _entries(self, objects: Sequence[MergedObject]) -> Iterator[dict[str, Any]]:
        """COCO results with class names."""
        for merged in objects:
            x1, y1, x2, y2 = merged.box_4.tolist()
            entry = {
                "image_id": self._image_id,
                "category_id": self.task.category_ids[merged.label],
                "category": self.task.classes.names[merged.label],
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": merged.score,
            }
            if self._masks:
                entry["segmentation"] = self._mask(merged).rle(self.own_size)
            yield entry

    def _write_json(self, objects: Sequence[MergedObject]) -> None:
        self._file.write_bytes(b"[")
        for index, entry in enumerate(self._entries(objects)):
            self._file.write_bytes((",\n" if index else "").encode() + json.dumps(entry).encode())
        self._file.write_bytes(b"]\n")

    def _overlay(self, objects: Sequence[MergedObject]) -> Image.Image:
        """The scaled-down image with masks and boxes in class colors; class names would cover small objects."""
        canvas_HWC = self._small_image.array()
        shrink = (canvas_HWC.shape[0] / self.own_size[0], canvas_HWC.shape[1] / self.own_size[1])
        drawn = [merged for merged in objects if merged.score >= DRAWN_SCORE]
        for merged in drawn if self._masks else []:
            _tint(canvas_HWC, self._mask(merged), shrink, self.task.classes.colors[merged.label])
        picture = Image.fromarray(canvas_HWC)
        pen = ImageDraw.Draw(picture)
        line = max(1, round(max(picture.size) / 1000))
        for merged in reversed(drawn):
            x1, y1, x2, y2 = (merged.box_4 * np.array([shrink[1], shrink[0]] * 2)).round().astype(int).tolist()
            color = self.task.classes.colors[merged.label]
            pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line)
        return picture


def _columns(part: TileObjects) -> tuple[NDArray[Any], ...]:
    return part.boxes_N4, part.labels_N, part.scores_N, part.tiles_N2, part.seen_N4, part.cut_N4


def _tint(
    canvas_HWC: NDArray[np.uint8], mask: CropMask, shrink: tuple[float, float], color: tuple[int, int, int]
) -> None:
    """Blends a color into the pixels of a scaled-down picture whose centers are inside a mask."""
    mask_hw = mask.pixels()
    spans = []
    for start, length, factor, side in zip(
        (mask.top, mask.left), mask_hw.shape, shrink, canvas_HWC.shape[:2], strict=True
    ):
        first, last = int(start * factor), min(side, int((start + length) * factor) + 1)
        indices = np.arange(first, last)
        source = ((indices + 0.5) / factor).astype(int) - start
        inside = (source >= 0) & (source < length)
        spans.append((indices[inside], source[inside]))
    (rows, mask_rows), (columns, mask_columns) = spans
    chosen = mask_hw[np.ix_(mask_rows, mask_columns)]
    area = canvas_HWC[np.ix_(rows, columns)]
    area[chosen] = ((1 - _OPACITY) * area[chosen] + _OPACITY * np.array(color)).round().astype(np.uint8)
    canvas_HWC[np.ix_(rows, columns)] = area
