"""``vitsplit evaluate RUN``: measure a bundle on labelled images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

DESCRIPTION = """\
Measures a bundle on labelled images: a table on the screen, and metrics.json and a page of pictures (input, truth,
prediction, error) in the output folder.

  vitsplit evaluate runs/first --data my_data
  vitsplit evaluate runs/first --data my_data --test-scales 0.75 1 1.25 --test-flip
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = argparse.ArgumentParser(
        prog="vitsplit evaluate", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best bundle) or a bundle folder")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="the data set")
    parser.add_argument("--split", default="val", help="which of its splits (default: val)")
    parser.add_argument("--format", help="layout of the data, where it is not that of the training data; or auto")
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: a new evaluation-SPLIT in the run")
    parser.add_argument("--test-mode", choices=["whole", "slide"], help="whole images, or windows of the crop size")
    parser.add_argument("--test-scales", type=float, nargs="+", metavar="SCALE", help="average over these scales")
    parser.add_argument("--test-stride", type=int, nargs=2, metavar=("H", "W"), help="step of the windows, in pixels")
    parser.add_argument("--test-flip", action="store_true", default=None, help="average with the mirrored image")
    parser.add_argument("--pictures", type=int, default=12, metavar="N", help="images on the page (default: 12)")
    parser.add_argument("--weights", metavar="PATH", help="weights of the backbone, where they cannot be fetched")
    parser.add_argument("--device", help="where to compute; default: the first GPU, else the processor")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="default: fp32 if the run computed in it, else auto",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    options = parser.parse_args(argv)

    from vitsplit import api
    from vitsplit.data.folders import free_folder

    predictor = api.load(options.run, weights=options.weights, device=options.device, precision=options.precision)
    asked = {
        "test_mode": options.test_mode,
        "test_scales": options.test_scales,
        "test_flip": options.test_flip,
        "test_stride": options.test_stride,
        "format": options.format,
    }
    settings = {name: value for name, value in asked.items() if value is not None}
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("images", total=None)
        evaluation, task = api.evaluate(
            predictor, data=options.data, split=options.split, on_image=lambda: progress.advance(bar), **settings
        )
    folder = Path(options.out) if options.out else free_folder(Path(options.run) / f"evaluation-{options.split}")
    title = f"{Path(options.run).name} on {Path(options.data).name} ({options.split})"
    page = task.write_report(predictor.forward, evaluation, folder, title=title, count=options.pictures)
    if options.json:
        print(json.dumps(evaluation.metrics))
    else:
        Console().print(task.table(evaluation))
        print(f"pictures: {page}")
    return 0
