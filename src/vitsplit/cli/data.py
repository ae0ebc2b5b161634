"""``vitsplit data``: checks data before training on it, and makes data of published files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from vitsplit.cli.values import ImageSize, Switch


def check(
    path: tyro.conf.Positional[Path],
    /,
    task: str = "segmentation",
    format: Annotated[str, tyro.conf.arg(aliases=["-f"], metavar="FORMAT")] = "auto",
    depth_scale: Annotated[Annotated[float, Field(gt=0, le=1e6)] | None, tyro.conf.arg(metavar="METRES")] = None,
    workers: Annotated[int, Field(ge=0, le=256)] = 0,
    json: Switch = False,
) -> int:
    """Read every file of a data set and say what it holds and what is wrong.

    Reports splits, image sizes, converted images, and of segmentation the pixels and images per class, of depth the
    range and the share of valid pixels, of detection the objects and images per class, of questions how many there are
    and how they are answered; and as errors what training would trip over: files that cannot be read, labels of another
    size or out of range, images that are in two splits.

    Folder layout: images/train and images/val, and with the same file names masks/train, masks/val and classes.json
    (segmentation), or depth/train and depth/val (depth). Detection takes COCO, YOLO and Pascal VOC; vqa takes
    *train.jsonl and *val.jsonl, or LLaVA's JSON. Published sets are recognised as they unpack, see docs/data.md and,
    for questions, docs/vqa.md.

    Exit status: 0 ready for training, 1 errors were found, 2 the folder cannot be used at all.

    Args:
        path: Folder of the data set.
        task: What the data are for: segmentation, depth, detection or vqa.
        format: Layout of the folder; auto recognises it. Segmentation: folder, ade20k, cityscapes, pascal-context;
            depth: folder, nyuv2, kitti; detection: coco, yolo, voc; vqa: questions, llava.
        depth_scale: Metres of one unit of integer depth maps (0.001: millimetres); None: what depth.json says.
        workers: Processes that read files; 0: one per core.
        json: Print the report as JSON, with every finding, instead of tables.
    """
    import json as json_format

    from rich.console import Console

    from vitsplit.data.show import show_report
    from vitsplit.tasks import check_data

    with _progress_bar("reading files") as progress:
        report = check_data(path, task, workers=workers, progress=progress, format=format, depth_scale=depth_scale)
    if json:
        print(json_format.dumps(report.to_json(), indent=1))
    else:
        show_report(report, Console())
    return 1 if report.errors else 0


def prepare(
    dataset: tyro.conf.Positional[Literal["nyuv2"]],
    file: tyro.conf.Positional[Path],
    /,
    mapping: Path,
    splits: Path,
    out: Path,
    size: ImageSize = (480, 640),
    split: Literal["official", "train-80-20"] = "official",
    depth: Literal["filled", "raw"] = "filled",
) -> int:
    """Turn the published file of NYUv2 into folders of images, depth maps and masks.

    The folder serves segmentation and depth as it is, and appears when it is complete. Reading the file needs
    pip install 'vitsplit[nyuv2]'. The project's own figures are measured on: --size 240 320 --split train-80-20.

    Args:
        dataset: The data set.
        file: nyu_depth_v2_labeled.mat.
        mapping: classMapping40.mat, the 40 classes of the 894 raw labels.
        splits: splits.mat, the official training and test images.
        out: Folder to make.
        size: Height and width of what is written; the published one is 480 640.
        split: official: train is the training half, val the test half. train-80-20: train is the first 80 % of the
            training half, val its rest, test the test half.
        depth: filled: holes of the sensor are filled in; raw: they are invalid, as in BTS's test maps.
    """
    from vitsplit.data.prepare.nyuv2 import prepare_nyuv2

    with _progress_bar("writing images") as progress:
        written = prepare_nyuv2(file, mapping, splits, out, size=size, split=split, depth=depth, progress=progress)
    print(f"{out}: {', '.join(f'{count} {name}' for name, count in written.items())}")
    return 0


@contextmanager
def _progress_bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, so that standard output holds the report alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        work = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(work, completed=done, total=total)
