"""Dense predictions of large images: blends tiles and writes finished rows.

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


class DenseTileWriter:
    """Predicts the tiles of an image with one dense task, blends them, and writes the result.

    Args:
        task: The task, without resizing.
        forward: The forward pass.
        grid: The tiles.
        own_size: Height and width of the output; resized by nearest neighbor if the tiles have another scale.
        stem: Folder and prefix of the file names.
        tiff: Whether to write class ids as a tiled TIFF instead of a PNG.
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
        self._small_prediction = Thumbnail(size, OVERLAY_SIDE, average=False)
        self._sources = [_nearest(own, here) for own, here in zip(own_size, size, strict=True)]
        self._rows_HW: NDArray[Any] | None = None

    def add(self, row: int, columns: Sequence[int], image_BCHW: Tensor) -> None:
        """Predicts adjacent tiles of a row."""
        values_BCHW = self.task.dense(self.forward, image_BCHW)
        for column, values_CHW in zip(columns, values_BCHW, strict=True):
            block_hw = self.task.postprocess(self.blender.add(row, column, values_CHW)[None])[0].cpu().numpy()
            if self._rows_HW is None:
                self._rows_HW = np.empty((self.grid.rows.tile, self.grid.columns.length), block_hw.dtype)
            left = self.grid.columns.starts[column]
            self._rows_HW[: block_hw.shape[0], left : left + block_hw.shape[1]] = block_hw

    def finish_row(self, row: int, image_CHW: Tensor) -> None:
        """Writes the pixels finished by a row of tiles; ``image_CHW`` has the same rows of the image."""
        assert self._rows_HW is not None, "a row has at least one tile"
        top, count = self.grid.rows.starts[row], self.grid.rows.finished(row)
        rows_hW = self._rows_HW[:count]
        first, last = np.searchsorted(self._sources[0], [top, top + count])
        for start in range(first, last, self.grid.rows.tile):
            source_rows = self._sources[0][start : min(start + self.grid.rows.tile, last)] - top
            self._writer.write(rows_hW[np.ix_(source_rows, self._sources[1])])
        self._small_prediction.write(rows_hW)
        self._small_image.write(image_CHW.permute(1, 2, 0).numpy())

    def close(self) -> tuple[Path, ...]:
        """Completes the files and returns their paths."""
        path = self._writer.close()
        picture = self._file.draw(self._small_prediction.array(), self._small_image.array())
        picture.convert("RGB").save(self._picture_path, quality=92)
        return path, self._picture_path

    def discard(self) -> None:
        """Removes incomplete files."""
        self._writer.discard()


def _nearest(own: int, here: int) -> NDArray[np.int64]:
    """Indices of the nearest of ``here`` pixels at the centers of ``own`` pixels, non-decreasing."""
    return ((np.arange(own) + 0.5) * here / own).astype(np.int64).clip(max=here - 1)


def _writer(file: DenseFile, stem: Path, size: tuple[int, int], *, tiff: bool) -> PngWriter | TiffWriter:
    """A PNG for class ids without ``tiff``, else a tiled TIFF, since a PNG of other values requires their maximum."""
    if file.palette is not None and not tiff:
        return PngWriter(stem.with_name(f"{stem.name}{file.ending}.png"), size, palette=file.palette)
    path = stem.with_name(f"{stem.name}{file.ending}.tif")
    return TiffWriter(path, size, dtype=file.dtype, palette=file.palette, description=file.description)
