"""``vitsplit data``: looks at data before a model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro


def check(
    path: tyro.conf.Positional[Path],
    /,
    task: Literal["segmentation"] = "segmentation",
    format: Annotated[
        Literal["auto", "folder", "ade20k", "cityscapes", "pascal-context"], tyro.conf.arg(aliases=["-f"])
    ] = "auto",
    workers: int = 0,
    json: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> int:
    """Read every file of a data set and say what it holds and what is wrong.

    Reports splits, image sizes, converted images, pixels and images per class; and as errors: files that cannot be
    read, masks of another size, labels out of range, images that are in two splits.

    Folder layout: images/train, images/val, masks/train, masks/val with the same file names, and classes.json (a list
    of names; mask value 0 is the first, 255 is ignored). ADE20K, Cityscapes and Pascal Context are recognised as they
    unpack.

    Exit status: 0 ready for training, 1 errors were found, 2 the folder cannot be used at all.

    Args:
        path: Folder of the data set.
        task: What the data are for.
        format: Layout of the folder; auto recognises it.
        workers: Processes that read files; 0: one per core.
        json: Print the report as JSON, with every finding, instead of tables.
    """
    import json as json_format

    from rich.console import Console

    from vitsplit.data.check import check_data
    from vitsplit.data.show import show_report

    with _progress_bar() as progress:
        report = check_data(path, task, format, workers, progress)
    if json:
        print(json_format.dumps(report.to_json(), indent=1))
    else:
        show_report(report, Console())
    return 1 if report.errors else 0


VERBS = {"check": check}
"""Name to function, whose signature and docstring make the command line."""


def main(argv: list[str]) -> int:
    """Runs ``vitsplit data VERB`` and returns the exit status."""
    return int(
        tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="vitsplit data", description="Look at data before a model does.", args=argv
        )
    )


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, so that standard output holds the report alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        reading = bar.add_task("reading files", total=None)
        yield lambda done, total: bar.update(reading, completed=done, total=total)
