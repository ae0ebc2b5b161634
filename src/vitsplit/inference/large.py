"""Predictions of images of any size: reads the image in strips, predicts and blends tiles, and writes finished rows.

Memory is independent of the image's height: one row of tiles and, per dense bundle, the overlap with the next row.

Shapes: B batch, C channels, H W pixels of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from vitsplit.errors import ConfigError
from vitsplit.inference.dense_answer import DenseTileWriter
from vitsplit.inference.detection_answer import DetectionTileWriter
from vitsplit.inference.predictor import LoadedHead, Predictor, make_forward
from vitsplit.inference.shared_pass import SharedPass
from vitsplit.inference.strips import ImageStrips, is_large
from vitsplit.inference.tiling import Grid, plan_grid
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Forward

__all__ = ["default_tile", "is_large", "predict_large"]

logger = logging.getLogger(__name__)

PIXELS_PER_PASS = 360_000
"""Maximum number of pixels of a batch of tiles: four of 252 x 336, one of 512 x 512."""
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})

TileWriter = DenseTileWriter | DetectionTileWriter


def predict_large(
    predictor: Predictor,
    path: str | Path,
    out_folder: str | Path,
    name: str,
    *,
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    scale: float = 1.0,
    on_tile: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Predicts one image in tiles and writes the predictions.

    Tiles of the image at ``scale`` are predicted without further resizing; the bundle's ``image_scale`` is ignored. In
    overlaps, class probabilities (or depths) are averaged with weights that decrease towards the borders of tiles;
    objects are merged by the rules in ``across_tiles``. Predictions have the size of the image.

    Args:
        predictor: The heads, which share one pass per batch of tiles; see ``vitsplit.load``.
        path: The image: PNG, TIFF, JPEG or WebP.
        out_folder: Output folder.
        name: Prefix of the file names; can include folders.
        tile: Height and width of a tile in pixels at ``scale``; None: ``default_tile``.
        overlap: Minimum overlap of neighboring tiles in pixels; None: a quarter of the tile's shorter side.
        scale: Scale factor of the image, such as 0.5.
        on_tile: Called with the number of finished tiles and of all tiles.

    Returns:
        The files. Segmentation: class ids with a palette (``NAME_mask.tif``, tiled, for a TIFF, else ``.png``) and an
        overlay. Depth: meters as a tiled float32 TIFF, and a picture with a scale bar. Detection: COCO results and an
        overlay. Pictures have at most 4000 pixels per side. With several heads, the head's name is appended to
        ``name``.

    Raises:
        ConfigError: pyvips is not installed, tile, overlap or scale are invalid, or a task does not support tiles.
        DataError: The image cannot be read; incomplete files are removed.
    """
    chosen = tile or default_tile(predictor.values())
    strips = ImageStrips(path, scale)
    grid = plan_grid(strips.size, chosen, min(chosen) // 4 if overlap is None else overlap)
    if tile is None:
        _log_tiles(Path(path), strips, grid, scale, [each.card.config.task for each in predictor.values()])
    forwards, one_pass = _forwards(predictor)
    tiff = Path(path).suffix.lower() in _TIFF_SUFFIXES
    writers: list[TileWriter] = []
    try:
        for head, each in predictor.items():
            stem = Path(out_folder) / (f"{name}_{head}" if len(predictor) > 1 else name)
            task = _task_for_tiles(each, grid)
            if task.config.tiles is None:
                raise ConfigError(f"{each.card.task} does not support prediction in tiles. Use a smaller image.")
            if task.config.tiles == "dense":
                writers.append(DenseTileWriter(task, forwards[head], grid, strips.own_size, stem, tiff=tiff))
            else:
                writers.append(DetectionTileWriter(task, forwards[head], grid, strips.own_size, stem))
        _run(strips, grid, writers, one_pass, on_tile)
        return tuple(file for writer in writers for file in writer.close())
    except BaseException:
        for writer in writers:
            writer.discard()
        raise


def default_tile(heads: Iterable[LoadedHead]) -> tuple[int, int]:
    """Height and width of tiles: the size that a bundle was trained with, or the largest of several bundles."""
    sizes = [each.card.config.task.tile_size for each in heads]
    return max(sizes, key=lambda size: size[0] * size[1])


def _log_tiles(path: Path, strips: ImageStrips, grid: Grid, scale: float, configs: Sequence[Any]) -> None:
    """Logs the default tiles of an image, and how to choose ``--scale``."""
    height, width = strips.own_size
    logger.info(
        "%s: %dx%d pixels (height x width) in %d tiles of %dx%d, at scale %g",
        path.name, height, width, len(grid), *grid.tile, scale,
    )  # fmt: skip
    image_scales = [getattr(config, "image_scale", None) for config in configs]
    sides = {min(each) for each in image_scales if each is not None}
    if scale == 1.0 and sides:
        logger.info(
            "The bundle was trained on images resized to a shorter side of %s pixels. If objects in %s have the size "
            "that they have in the original training images, give --scale: %s divided by the shorter side of these.",
            min(sides), path.name, min(sides),
        )  # fmt: skip


def _run(
    strips: ImageStrips,
    grid: Grid,
    writers: Sequence[TileWriter],
    one_pass: Callable[[], AbstractContextManager[None]],
    on_tile: Callable[[int, int], None] | None,
) -> None:
    height, width = grid.tile
    per_pass = max(1, PIXELS_PER_PASS // (height * width))
    done = 0
    for row, top in enumerate(grid.rows.starts):
        image_CHW = strips.rows(top, top + height)
        for first in range(0, len(grid.columns.starts), per_pass):
            lefts = grid.columns.starts[first : first + per_pass]
            tiles_BCHW = torch.stack([image_CHW[..., left : left + width] for left in lefts])
            with one_pass():
                for writer in writers:
                    writer.add(row, range(first, first + len(lefts)), tiles_BCHW)
            done += len(lefts)
            if on_tile is not None:
                on_tile(done, len(grid))
        for writer in writers:
            writer.finish_row(row, image_CHW[:, : grid.rows.finished(row)])


def _forwards(
    heads: Mapping[str, LoadedHead],
) -> tuple[dict[str, Forward], Callable[[], AbstractContextManager[None]]]:
    """Forward passes by head, and the context in which they share backbone passes."""
    if len(heads) == 1:
        return {name: each.forward for name, each in heads.items()}, nullcontext
    backbone = next(iter(heads.values())).backbone
    shared = SharedPass(backbone)
    forwards = {
        name: make_forward(backbone, each.model, shared.attach(name, each.model.request(train=False)))
        for name, each in heads.items()
    }
    return forwards, shared.image


def _task_for_tiles(head: LoadedHead, grid: Grid) -> Any:
    """The bundle's task with settings that neither resize nor crop tiles."""
    return bare_task(head.card.config.task.for_tiles(grid.tile), head.card.description)
