"""Images of any size: cut into tiles as they are read, predicted, blended, and written as rows become final.

Memory holds a row of tiles of the image and, per dense bundle, the strip of values that the next row of tiles will add
to; neither grows with the image's height.

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
from vitsplit.inference.dense_answer import DenseAnswer
from vitsplit.inference.detection_answer import DetectionAnswer
from vitsplit.inference.predictor import LoadedHead, Predictor, make_forward
from vitsplit.inference.shared_pass import SharedPass
from vitsplit.inference.strips import ImageStrips, is_large
from vitsplit.inference.tiling import Grid, plan_grid
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Forward

__all__ = ["default_tile", "is_large", "predict_large"]

logger = logging.getLogger(__name__)

PIXELS_PER_PASS = 360_000
"""Tiles go through the network together up to this many pixels: four of 252 x 336, one of 512 x 512."""
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})

Answer = DenseAnswer | DetectionAnswer


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
    """Predicts one image in tiles and writes the answer.

    Tiles are cut from the image at ``scale`` and go into the network as they are: the bundle's ``image_scale``, which
    would shrink a whole image, is left out. Where tiles overlap, class probabilities (or metres) are averaged, with
    weights that fall to zero towards the cut borders; objects are merged by the rule in ``across_tiles``. The answer
    has the image's own size.

    Args:
        predictor: What ``vitsplit.load`` returns: heads by name, which share one pass per tile.
        path: The image: PNG, TIFF, JPEG or WebP.
        out_folder: Where to write.
        name: What the files' names begin with; may hold folders.
        tile: Height and width of a tile in pixels at ``scale``; None: ``default_tile``.
        overlap: The least number of pixels that neighbours share; None: a quarter of the tile's shorter side.
        scale: Factor on the image before it is cut, such as 0.5.
        on_tile: Called with the number of tiles done, and of all tiles.

    Returns:
        The files. Segmentation: class ids with a palette (``NAME_mask.tif``, tiled, for a TIFF, else ``.png``) and an
        overlay. Depth: metres as a tiled TIFF of float32, and a picture with a scale bar. Detection: COCO results, and
        an overlay. Pictures have at most 4000 pixels a side. Of several heads, names continue with the head's.

    Raises:
        ConfigError: pyvips is missing, or tile, overlap or scale cannot work.
        DataError: The image cannot be read; nothing is left of what was written.
    """
    chosen = tile or default_tile(predictor.values())
    strips = ImageStrips(path, scale)
    grid = plan_grid(strips.size, chosen, min(chosen) // 4 if overlap is None else overlap)
    if tile is None:
        _say(Path(path), strips, grid, scale, [each.card.config.task for each in predictor.values()])
    forwards, one_pass = _forwards(predictor)
    tiff = Path(path).suffix.lower() in _TIFF_SUFFIXES
    answers: list[Answer] = []
    try:
        for head, each in predictor.items():
            stem = Path(out_folder) / (f"{name}_{head}" if len(predictor) > 1 else name)
            task = _task_for_tiles(each, grid)
            if task.config.tiles is None:
                raise ConfigError(f"{each.card.task}: an image is not predicted in tiles. Give a smaller one.")
            if task.config.tiles == "dense":
                answers.append(DenseAnswer(task, forwards[head], grid, strips.own_size, stem, tiff=tiff))
            else:
                answers.append(DetectionAnswer(task, forwards[head], grid, strips.own_size, stem))
        _run(strips, grid, answers, one_pass, on_tile)
        return tuple(file for answer in answers for file in answer.close())
    except BaseException:
        for answer in answers:
            answer.discard()
        raise


def default_tile(heads: Iterable[LoadedHead]) -> tuple[int, int]:
    """Height and width of tiles: what a bundle was trained on, of several bundles the largest."""
    sizes = [each.card.config.task.tile_size for each in heads]
    return max(sizes, key=lambda size: size[0] * size[1])


def _say(path: Path, strips: ImageStrips, grid: Grid, scale: float, configs: Sequence[Any]) -> None:
    """How an image is cut for which nobody said how, and what the scale should have been told."""
    height, width = strips.own_size
    logger.info(
        "%s: %dx%d pixels (height x width) in %d tiles of %dx%d, at scale %g",
        path.name, height, width, len(grid), *grid.tile, scale,
    )  # fmt: skip
    image_scales = [getattr(config, "image_scale", None) for config in configs]
    sides = {min(each) for each in image_scales if each is not None}
    if scale == 1.0 and sides:
        logger.info(
            "The bundle was trained on images whose shorter side was brought to %s pixels. If things in %s are as "
            "large as in those images before that, give --scale: %s divided by their shorter side.",
            min(sides), path.name, min(sides),
        )  # fmt: skip


def _run(
    strips: ImageStrips,
    grid: Grid,
    answers: Sequence[Answer],
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
                for answer in answers:
                    answer.add(row, range(first, first + len(lefts)), tiles_BCHW)
            done += len(lefts)
            if on_tile is not None:
                on_tile(done, len(grid))
        for answer in answers:
            answer.finish_row(row, image_CHW[:, : grid.rows.finished(row)])


def _forwards(
    heads: Mapping[str, LoadedHead],
) -> tuple[dict[str, Forward], Callable[[], AbstractContextManager[None]]]:
    """The bundles' forward passes, and the time in which they share one."""
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
    """The bundle's task with settings under which a tile is neither resized nor cut again."""
    return bare_task(head.card.config.task.for_tiles(grid.tile), head.card.description)
