"""``vitsplit rank IMAGES``: unlabeled images in the order in which labeling them would teach a bundle most."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from vitsplit.cli.progress import progress_bar
from vitsplit.cli.values import Count, Loading, make_writable
from vitsplit.errors import DataError

if TYPE_CHECKING:
    from vitsplit.analysis.ranking import Measured
    from vitsplit.inference.predictor import LoadedHead


def rank(
    images: tyro.conf.Positional[Path],
    /,
    *,
    bundle: str,
    labeled: Path | None = None,
    count: Count = 100,
    out: Path = Path("ranking"),
    pictures: Annotated[int, Field(ge=0, le=10**4)] = 24,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
) -> int:
    """Order unlabeled images by what labeling them would teach a bundle of segmentation or detection.

    Chooses images one by one, each with the largest product of its uncertainty (of segmentation, the mean of 1 -
    confidence over the pixels; of detection, the sum of (1 - |2 score - 1|)^2 over the objects) and its distance to the
    images chosen before it, and to those labeled already, in the space of the frozen features.

    Writes ranking.csv, ranking.json, and a page with the first images, their predictions and where these are uncertain.
    Unreadable files are listed at the end; the exit status is then 1.

    Examples:
        vitsplit rank new_photos --bundle runs/rooms
        vitsplit rank new_photos --bundle runs/rooms --labeled my_data/images/train --count 40 --out to_label

    Args:
        images: Folder of images, including subfolders.
        bundle: A run folder (its best bundle) or a bundle folder.
        labeled: Folder of the images that are labeled already, so that others like them come later.
        count: Number of images to choose.
        out: Output folder.
        pictures: Number of images on the page.
        loading: Loading options.
    """
    from vitsplit.analysis.ranking import greedy_order
    from vitsplit.analysis.ranking_report import write_ranking
    from vitsplit.inference.predictor import load_head

    folders = [images] if labeled is None else [images, labeled]
    files = [_images(folder, out) for folder in folders]
    make_writable(out)
    head = load_head(bundle, **loading.arguments())
    found, *others = (_measure(head, each) for each in files)
    if not found.paths:
        raise DataError(f"{images}: no image could be read. {found.failed[0]}")
    order = greedy_order(found, count, others[0].feature_ND if others else None)
    subtitle = f"{len(order)} of {len(found.paths)} images in {images}, by {bundle}"
    page = write_ranking(found.paths, order, head, out, pictures=pictures, subtitle=subtitle)
    print(f"{len(order)} of {len(found.paths)} images ordered\npage: {page}")
    failed = [message for each in (found, *others) for message in each.failed]
    for message in failed:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if failed else 0


def _images(folder: Path, out: Path) -> list[Path]:
    from vitsplit.inference.inputs import find_inputs

    files = [item.path for item in find_inputs([folder], out) if not item.is_video]
    if not files:
        raise DataError(f"{folder}: no images found. Give a folder of images.")
    return files


def _measure(head: LoadedHead, files: list[Path]) -> Measured:
    from vitsplit.analysis.ranking import measure

    with progress_bar("predicting") as progress:
        bar = progress.add_task("images", total=len(files))
        return measure(head, files, lambda: progress.advance(bar))
