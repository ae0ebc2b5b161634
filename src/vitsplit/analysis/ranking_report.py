"""Reports of a ranking: a table as CSV and JSON, and a page of the first images.

Shapes: H W pixels.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitsplit.analysis.ranking import Choice
from vitsplit.atomic_files import write_text
from vitsplit.inference.predictor import LoadedHead
from vitsplit.report import Page

COLUMNS = ("rank", "image", "score", "uncertainty", "distance")
LARGEST_SIDE = 480
COLOR_MAP = "magma"


def write_ranking(
    paths: Sequence[Path], order: Sequence[Choice], head: LoadedHead, folder: Path, *, pictures: int, subtitle: str
) -> Path:
    """Writes ``ranking.csv``, ``ranking.json`` and ``index.html``; returns the page.

    Args:
        paths: The images.
        order: Those chosen, in order.
        head: The head, which predicts the pictures.
        folder: Output folder; created if missing.
        pictures: Number of images on the page.
        subtitle: A line below the title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        (rank, str(paths[each.index]), round(each.score, 6), round(each.uncertainty, 6), round(each.distance, 6))
        for rank, each in enumerate(order, 1)
    ]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(folder / "ranking.csv", table.getvalue())
    page = Page("Images to label next", subtitle)
    page.text(
        "`uncertainty`: mean of 1 - confidence over the pixels. `distance`: cosine distance of the frozen features to "
        "the nearest image before it, or labeled image. Right: light pixels are uncertain.",
        soft=True,
    )
    for rank, path, _, uncertainty, distance in rows[:pictures]:
        prediction = head.predict(path)
        name = f"{rank}. {Path(path).name}: uncertainty {uncertainty:.3f}, distance {distance:.3f}"
        shown = [(Image.fromarray(prediction.image), name), (prediction.overlay(), "prediction")]
        page.pictures(
            [
                (_small(each), caption)
                for each, caption in [*shown, (_uncertainty(prediction.confidence), "1 - confidence")]
            ]
        )
    return page.write(folder, {"ranking": [dict(zip(COLUMNS, row, strict=True)) for row in rows]})


def _uncertainty(confidence_HW: NDArray[np.float32]) -> Image.Image:
    from matplotlib import colormaps

    return Image.fromarray((colormaps[COLOR_MAP](1 - confidence_HW)[..., :3] * 255).round().astype(np.uint8))


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture
