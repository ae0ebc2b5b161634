"""What becomes of a dense task's values in the tiles of a large image: blended, settled, and written row by row.

Shapes: B batch, C channels, H W pixels of a tile, h w of a finished block.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitsplit.inference.tiling import Blender, Grid
from vitsplit.inference.writers import OVERLAY_SIDE, PngWriter, Thumbnail, TiffWriter
from vitsplit.tasks.base import DenseFile, DenseTask, Forward


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
        self._file = task.dense_file()
        self._picture_path = stem.with_name(f"{stem.name}{self._file.picture_ending}.jpg")
        self._writer = _writer(self._file, stem, own_size, tiff=tiff)
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
            self._writer.write(rows_hW[np.ix_(of_rows, self._sources[1])])
        self._small_answer.write(rows_hW)
        self._small_image.write(image_CHW.permute(1, 2, 0).numpy())

    def close(self) -> tuple[Path, ...]:
        """Completes the files and returns their paths."""
        path = self._writer.close()
        picture = self._file.draw(self._small_answer.array(), self._small_image.array())
        picture.convert("RGB").save(self._picture_path, quality=92)
        return path, self._picture_path

    def discard(self) -> None:
        """Removes files that are not complete."""
        self._writer.discard()


def _nearest(own: int, here: int) -> NDArray[np.int64]:
    """For each of ``own`` pixels, which of ``here`` pixels lies over its centre; rises from 0 to ``here - 1``."""
    return ((np.arange(own) + 0.5) * here / own).astype(np.int64).clip(max=here - 1)


def _writer(file: DenseFile, stem: Path, size: tuple[int, int], *, tiff: bool) -> PngWriter | TiffWriter:
    """A tiled TIFF, or for class ids a PNG unless a TIFF is wanted: a PNG of values needs the largest for its scale."""
    if file.palette is not None and not tiff:
        return PngWriter(stem.with_name(f"{stem.name}{file.ending}.png"), size, palette=file.palette)
    path = stem.with_name(f"{stem.name}{file.ending}.tif")
    return TiffWriter(path, size, dtype=file.dtype, palette=file.palette, description=file.description)
