"""What becomes of a dense task's values in the tiles of a large image: blended, settled, and written row by row.

Shapes: B batch, C channels, H W pixels of a tile, h w of a finished block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitsplit.inference.tiling import Blender, Grid
from vitsplit.inference.writers import OVERLAY_SIDE, PngWriter, Thumbnail, TiffWriter
from vitsplit.tasks.base import DenseTask, Forward
from vitsplit.tasks.depth.predict import DepthPrediction
from vitsplit.tasks.segmentation.predict import SegmentationPrediction


@dataclass(frozen=True)
class DenseFile:
    """How a task's answer is kept.

    Attributes:
        writer: Takes the answer's rows.
        picture_path: File of the picture to look at.
        draw: A small answer and its image to that picture.
    """

    writer: PngWriter | TiffWriter
    picture_path: Path
    draw: Callable[[NDArray[Any], NDArray[np.uint8]], Image.Image]


def segmentation_file(task: Any, stem: Path, size: tuple[int, int], *, tiff: bool) -> DenseFile:
    """``STEM_mask.png`` or ``.tif``: class ids with a palette."""
    classes = task.classes
    path = _beside(stem, f"_mask.{'tif' if tiff else 'png'}")
    writer: PngWriter | TiffWriter
    if tiff:
        writer = TiffWriter(path, size, dtype=np.uint8, palette=classes.colors)
    else:
        writer = PngWriter(path, size, palette=classes.colors)
    return DenseFile(
        writer,
        _beside(stem, "_overlay.jpg"),
        lambda mask_HW, image_HWC: SegmentationPrediction(mask_HW, classes, image_HWC).overlay(),
    )


def depth_file(task: Any, stem: Path, size: tuple[int, int], *, tiff: bool) -> DenseFile:
    """``STEM_depth.tif``: metres in float32, whatever the image's own format: a PNG's scale needs the largest depth."""
    writer = TiffWriter(_beside(stem, "_depth.tif"), size, dtype=np.float32, description="depth in metres")
    return DenseFile(
        writer,
        _beside(stem, "_depth.jpg"),
        lambda depth_HW, image_HWC: DepthPrediction(depth_HW, image_HWC).picture(),
    )


def _beside(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


DENSE_FILES = {"segmentation": segmentation_file, "depth": depth_file}
"""How each dense task's answer is kept."""


class DenseAnswer:
    """The blended answer of one dense task.

    Args:
        task: The task, which resizes nothing.
        forward: Its forward pass.
        grid: The tiles.
        own_size: Height and width of the answer's file; where the tiles are of another scale, the nearest pixel.
        stem: Folder and beginning of the files' names.
        tiff: Write a tiled TIFF, else a PNG.
    """

    def __init__(
        self, task: DenseTask, forward: Forward, grid: Grid, own_size: tuple[int, int], stem: Path, *, tiff: bool
    ) -> None:
        self.task, self.forward, self.grid = task, forward, grid
        self.blender = Blender(grid)
        size = (grid.rows.length, grid.columns.length)
        self._file = DENSE_FILES[task.name](task, stem, own_size, tiff=tiff)
        self._small_image = Thumbnail(size, OVERLAY_SIDE, average=True)
        self._small_answer = Thumbnail(size, OVERLAY_SIDE, average=False)
        self._sources = [_nearest(own, here) for own, here in zip(own_size, size, strict=True)]
        self._rows_HW: NDArray[Any] | None = None

    def add(self, row: int, columns: Sequence[int], image_BCHW: Tensor) -> None:
        """Predicts tiles of one row that stand side by side."""
        values_BCHW = self.task.dense(self.forward, image_BCHW)
        for column, values_CHW in zip(columns, values_BCHW, strict=True):
            block_hw = self.task.settle(self.blender.add(row, column, values_CHW)[None])[0].cpu().numpy()
            if self._rows_HW is None:
                self._rows_HW = np.empty((self.grid.rows.tile, self.grid.columns.length), block_hw.dtype)
            left = self.grid.columns.starts[column]
            self._rows_HW[: block_hw.shape[0], left : left + block_hw.shape[1]] = block_hw

    def finish_row(self, row: int, image_CHW: Tensor) -> None:
        """Writes what is final when all tiles of a row are in; ``image_CHW`` holds the same rows of the image."""
        assert self._rows_HW is not None, "a row has at least one tile"
        top, count = self.grid.rows.starts[row], self.grid.rows.finished(row)
        rows_hW = self._rows_HW[:count]
        first, last = np.searchsorted(self._sources[0], [top, top + count])
        for start in range(first, last, self.grid.rows.tile):
            of_rows = self._sources[0][start : min(start + self.grid.rows.tile, last)] - top
            self._file.writer.write(rows_hW[np.ix_(of_rows, self._sources[1])])
        self._small_answer.write(rows_hW)
        self._small_image.write(image_CHW.permute(1, 2, 0).numpy())

    def close(self) -> tuple[Path, ...]:
        """Completes the files and returns their paths."""
        path = self._file.writer.close()
        picture = self._file.draw(self._small_answer.array(), self._small_image.array())
        picture.convert("RGB").save(self._file.picture_path, quality=92)
        return path, self._file.picture_path

    def discard(self) -> None:
        """Removes files that are not complete."""
        self._file.writer.discard()


def _nearest(own: int, here: int) -> NDArray[np.int64]:
    """For each of ``own`` pixels, which of ``here`` pixels lies over its centre; rises from 0 to ``here - 1``."""
    return ((np.arange(own) + 0.5) * here / own).astype(np.int64).clip(max=here - 1)
