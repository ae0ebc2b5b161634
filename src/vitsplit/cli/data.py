"""``vitsplit data``: checks data sets, and converts published ones."""

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
    depth_scale: Annotated[Annotated[float, Field(gt=0, le=1e6)] | None, tyro.conf.arg(metavar="METERS")] = None,
    workers: Annotated[int, Field(ge=0, le=256)] = 0,
    json: Switch = False,
) -> int:
    """Check all files of a data set, and report statistics and errors.

    Statistics are splits, image sizes and converted images; for segmentation the pixels and images per class, for depth
    the range and the share of valid pixels, for detection the objects and images per class, and for vqa the questions
    and types of answers. Errors are unreadable files, labels of wrong size or out of range, and images in two splits.

    Folder layout: images/train and images/val, and with the same file names masks/train, masks/val and classes.json
    (segmentation), or depth/train and depth/val (depth). Detection takes COCO, YOLO and Pascal VOC; vqa takes
    *train.jsonl and *val.jsonl, or LLaVA's JSON. The original layouts of published data sets are detected, see
    docs/data.md and, for vqa, docs/vqa.md.

    Exit status: 0 without errors, 1 with errors in files, 2 if the folder is not a data set.

    Args:
        path: Folder of the data set.
        task: segmentation, depth, detection or vqa.
        format: Layout of the folder; auto detects it. Segmentation: folder, ade20k, cityscapes, pascal-context;
            depth: folder, nyuv2, kitti; detection: coco, yolo, voc; vqa: questions, llava.
        depth_scale: Meters per unit of integer depth maps (0.001: millimeters); None: that of depth.json.
        workers: Number of processes; 0: one per core.
        json: Print the report as JSON, with all errors, instead of tables.
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
    """Convert the published file of NYUv2 to folders of images, depth maps and masks.

    The output folder can be used for segmentation and depth. It is created only after the conversion is complete.
    Requires pip install 'vitsplit[nyuv2]'. The results in docs/results.md use --size 240 320 --split train-80-20.

    Args:
        dataset: The data set.
        file: nyu_depth_v2_labeled.mat.
        mapping: classMapping40.mat, the 40 classes of the 894 raw labels.
        splits: splits.mat, the official training and test images.
        out: Output folder.
        size: Height and width of the output; the original size is 480 640.
        split: official: train is the training half, val the test half. train-80-20: train is the first 80 % of the
            training half, val the rest, test the test half.
        depth: filled: with missing sensor values filled in; raw: missing values are invalid, as in BTS's test maps.
    """
    from vitsplit.data.prepare.nyuv2 import prepare_nyuv2

    with _progress_bar("writing images") as progress:
        written = prepare_nyuv2(file, mapping, splits, out, size=size, split=split, depth=depth, progress=progress)
    print(f"{out}: {', '.join(f'{count} {name}' for name, count in written.items())}")
    return 0


@contextmanager
def _progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error; standard output is for the report."""
    from vitsplit.cli.progress import progress_bar

    with progress_bar(in_terminals_only=True) as bar:
        bar_task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(bar_task, completed=done, total=total)
