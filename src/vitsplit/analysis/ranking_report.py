"""Reports of a ranking: a table as CSV and JSON, and a page of the first images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vitsplit.analysis.ranking import Choice
from vitsplit.atomic_files import write_text
from vitsplit.inference.predictor import LoadedHead
from vitsplit.report import Page

COLUMNS = ("rank", "image", "score", "uncertainty", "distance")
LARGEST_SIDE = 480


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
    number, picture = head.card.config.task.prediction_type().uncertainty_meaning
    page.text(
        f"`uncertainty`: {number}. `distance`: cosine distance of the frozen features to the nearest image before it, "
        f"or labeled image. Right: {picture}.",
        soft=True,
    )
    for rank, path, _, uncertainty, distance in rows[:pictures]:
        prediction = head.predict(path)
        name = f"{rank}. {Path(path).name}: uncertainty {uncertainty:.3f}, distance {distance:.3f}"
        shown = [
            (Image.fromarray(prediction.image), name),
            (prediction.overlay(), "prediction"),
            (prediction.uncertainty_picture(), "uncertain"),
        ]
        page.pictures([(_small(each), caption) for each, caption in shown])
    return page.write(folder, {"ranking": [dict(zip(COLUMNS, row, strict=True)) for row in rows]})


def _small(picture: Image.Image) -> Image.Image:
    picture = picture.copy()
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture
