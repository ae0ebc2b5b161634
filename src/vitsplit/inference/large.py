"""Images of any size: cut into tiles as they are read, predicted, blended, and written as rows become final.

Memory holds a row of tiles of the image and, per dense bundle, the strip of values that the next row of tiles will add
to; neither grows with the image's height.

Shapes: B batch, C channels, H W pixels of a tile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitsplit.inference.dense_answer import DenseAnswer
from vitsplit.inference.strips import ImageStrips, is_large
from vitsplit.inference.tiling import Grid, plan_grid
from vitsplit.tasks import bare_task

__all__ = ["default_tile", "is_large", "predict_large"]

TILES_PER_PASS = 4
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})


def predict_large(
    predictor: Any,
    path: str | Path,
    out_folder: str | Path,
    name: str,
    *,
    tile: tuple[int, int] | None = None,
    overlap: int | None = None,
    scale: float = 1.0,
    on_tile: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Predicts one image in tiles and writes the answer.

    Tiles are cut from the image at ``scale`` and go into the network as they are: the bundle's ``image_scale``, which
    would shrink a whole image, is left out. Where tiles overlap, class probabilities (or metres) are averaged, with
    weights that fall to zero towards the cut borders. The answer has the image's own size.

    Args:
        predictor: What ``vitsplit.load`` returns.
        path: The image: PNG, TIFF, JPEG or WebP.
        out_folder: Where to write.
        name: What the files' names begin with; may hold folders.
        tile: Height and width of a tile in pixels at ``scale``; None: the bundle's ``crop_size``.
        overlap: The least number of pixels that neighbours share; None: a quarter of the tile's shorter side.
        scale: Factor on the image before it is cut, such as 0.5.
        on_tile: Called with the number of tiles done, and of all tiles.

    Returns:
        The files: the answer (tiled TIFF for a TIFF, else PNG), and an overlay of at most 4000 pixels.

    Raises:
        ConfigError: pyvips is missing, or tile, overlap or scale cannot work.
        DataError: The image cannot be read; nothing is left of what was written.
    """
    tile = tile or default_tile(predictor)
    strips = ImageStrips(path, scale)
    grid = plan_grid(strips.size, tile, min(tile) // 4 if overlap is None else overlap)
    stem = Path(out_folder) / name
    answer = DenseAnswer(
        _task_for_tiles(predictor, grid),
        predictor.forward,
        grid,
        strips.own_size,
        stem,
        tiff=Path(path).suffix.lower() in _TIFF_SUFFIXES,
    )
    try:
        _run(strips, grid, [answer], on_tile)
        return answer.close()
    except BaseException:
        answer.discard()
        raise


def default_tile(predictor: Any) -> tuple[int, int]:
    """Height and width of the tiles that a bundle was trained on."""
    height, width = predictor.task.config.crop_size
    return height, width


def _run(
    strips: ImageStrips, grid: Grid, answers: list[DenseAnswer], on_tile: Callable[[int, int], None] | None
) -> None:
    height, width = grid.tile
    done = 0
    for row, top in enumerate(grid.rows.starts):
        image_CHW = strips.rows(top, top + height)
        for first in range(0, len(grid.columns.starts), TILES_PER_PASS):
            lefts = grid.columns.starts[first : first + TILES_PER_PASS]
            tiles_BCHW = torch.stack([image_CHW[..., left : left + width] for left in lefts])
            for answer in answers:
                answer.add(row, range(first, first + len(lefts)), tiles_BCHW)
            done += len(lefts)
            if on_tile is not None:
                on_tile(done, len(grid))
        for answer in answers:
            answer.finish_row(row, image_CHW[:, : grid.rows.finished(row)])


def _task_for_tiles(predictor: Any, grid: Grid) -> Any:
    """The bundle's task with settings under which a tile is neither resized nor cut again."""
    config = predictor.card.config
    sides = {"crop_size": grid.tile, "image_scale": (max(grid.tile), min(grid.tile))}
    return bare_task(
        dataclasses.replace(config, task=dataclasses.replace(config.task, **sides)), predictor.card.description
    )
