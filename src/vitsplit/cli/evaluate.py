"""``vitsplit evaluate RUN``: measure a bundle on labelled images."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitsplit.atomic_files import json_text
from vitsplit.cli.loading import add_loading_flags, loading_options
from vitsplit.cli.values import split_name, whole
from vitsplit.errors import ConfigError

DESCRIPTION = """\
Measures a bundle on labelled images: a table on the screen, and metrics.json and a page of pictures (input, truth,
prediction, error) in the output folder.

Every setting of the bundle's task is a flag here too, such as the layout of the data (--format), where it is not that
of the training data; `vitsplit info RUN --help` lists them.

  vitsplit evaluate runs/first --data my_data
  vitsplit evaluate runs/first --data my_data --test-scales 0.75 1 1.25 --test-flip --test-mode slide
  vitsplit evaluate runs/depth --data my_depths --median-scaling --eval-crop nyu-eigen

With --benchmark NAME a bundle of visual question answering is asked the questions of a public benchmark;
`vitsplit evaluate --benchmark NAME --help` says more.

  vitsplit evaluate runs/vqa --benchmark pope --data pope
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    if any(word == "--benchmark" or word.startswith("--benchmark=") for word in argv):
        from vitsplit.cli import evaluate_benchmark

        return evaluate_benchmark.main(argv)
    options, flags = _parser().parse_known_args(argv)

    from vitsplit import api
    from vitsplit.atomic_files import writing_to
    from vitsplit.engine.folder_lock import hold_folder, hold_free_folder
    from vitsplit.inference.predictor import load_head

    settings = task_settings(options.run, flags)
    predictor = load_head(options.run, **loading_options(options))
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    default = Path(options.run) / f"evaluation-{options.split}"
    with ExitStack() as stack:
        # Before the work, so that a folder that cannot be written to is told of at once.
        held = hold_free_folder(default) if options.out is None else hold_folder(Path(options.out))
        folder = stack.enter_context(held)
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task("images", total=None)
            evaluation, task = api.evaluate(
                predictor,
                data=options.data,
                split=options.split,
                workers=options.workers,
                on_image=lambda: progress.advance(bar),
                **settings,
            )
        # The figures before the pictures, so that a full disk does not take them along.
        if options.json:
            print(json_text(evaluation.metrics), flush=True)
        else:
            Console().print(task.table(evaluation))
        title = f"{Path(options.run).name} on {Path(options.data).name} ({options.split})"
        with writing_to(folder, "pictures"):
            page = task.write_report(predictor.forward, evaluation, folder, title=title, count=options.pictures)
        if not options.json:
            print(f"pictures: {page}")
    return 0


def task_settings(run: str, flags: Sequence[str]) -> dict[str, Any]:
    """What the flags change of the settings of a bundle's task, by name.

    Raises:
        BundleError: There is no readable bundle.
        ConfigError: There is no such flag, or it is a setting of training.
    """
    from vitsplit.bundle import read_card
    from vitsplit.cli.options import config_from_cli

    trained = read_card(run).config
    changed = config_from_cli(trained, flags, prog=f"vitsplit evaluate {run}")
    if changed.change(task=trained.task) != trained:
        raise ConfigError(
            f"{' '.join(flags)}: only settings of the task can be changed when a trained bundle is evaluated; "
            "what it computes with is fixed."
        )
    names = [field.name for field in dataclasses.fields(trained.task)]
    new = {name: getattr(changed.task, name) for name in names}
    return {name: value for name, value in new.items() if value != getattr(trained.task, name)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitsplit evaluate",
        usage="vitsplit evaluate RUN --data FOLDER [options] [--SETTING VALUE ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best bundle) or a bundle folder")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="the data set")
    parser.add_argument("--split", type=split_name, default="val", help="which of its splits (default: val)")
    parser.add_argument("--out", metavar="FOLDER", help="where to write; default: a new evaluation-SPLIT in the run")
    parser.add_argument(
        "--pictures", type=whole(0, 10**4), default=12, metavar="N", help="images on the page (default: 12)"
    )
    parser.add_argument(
        "--workers", type=whole(-1, 256), default=-1, metavar="N", help="processes that read images (default: by cores)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    add_loading_flags(parser)
    return parser
