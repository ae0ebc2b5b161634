"""What ``vitsplit bench train-step`` and ``predict`` have in common: their options, and how figures are shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from vitsplit.cli.flags import from_flags
from vitsplit.cli.values import ImageSize, Limit, NumClasses, Switch, writable
from vitsplit.cli.words import leading_words
from vitsplit.config import Settings
from vitsplit.engine.override import changed_settings, override
from vitsplit.recipes import recipe
from vitsplit.train_config import TrainConfig

DEFAULT_RECIPE = "ade20k-small"
Methods = Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.arg(metavar="NAME[:DECODER] [NAME[:DECODER] ...]")]


class BenchOptions(Settings):
    """The options of both benchmarks."""

    size: ImageSize | None = None
    """Height and width of the images; None: the recipe's crops."""
    num_classes: NumClasses | None = None
    """None: as many as the recipe's data set has."""
    warmup: Limit = 2
    """Turns before those that count."""
    device: str | None = None
    """cpu, cuda, cuda:1; None: the first GPU, else the CPU."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Of the CPU; None: as PyTorch chooses."""
    json: Switch = False
    """Print the figures as JSON."""
    out: Path | None = None
    """Folder to write JSON, a picture and a page to."""


def recipe_of(argv: Sequence[str]) -> TrainConfig:
    """The settings of the recipe that the words begin with."""
    return recipe(next(iter(leading_words(argv)), DEFAULT_RECIPE))


def own_settings(config: TrainConfig, flags: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Settings that only methods other than the recipe's have, by the method's name."""
    found = {}
    for method, words in flags.items():
        plain = override(config, {"method": method})
        found[method] = changed_settings(plain, from_flags(plain, words))
    return found


def measure_and_show(
    measure: Callable[[Callable[[str], None]], Any],
    options: BenchOptions,
    *,
    to_json: Callable[[Any], dict[str, Any]],
    describe: Callable[[Any], str],
    tables: Callable[[Any], Sequence[list[list[str]]]],
    write: Callable[..., Path],
    command: Sequence[str],
) -> None:
    """Measures, telling how far it is, and shows the figures.

    Args:
        measure: Measures; is given what tells how far it is.
        options: The options.
        to_json: The figures, JSON-ready.
        describe: What was measured, in words.
        tables: The figures as tables, each a head and rows.
        write: Writes the figures and a page into a folder, with ``command``; returns the page.
        command: The command line that was given.
    """
    import torch
    from rich.console import Console

    from vitsplit.analysis.bench.report import on_screen

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.out is not None:
        writable(options.out)
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = measure(status.update)
    if options.json:
        print(json.dumps(to_json(result)))
    else:
        console = Console()
        console.print(describe(result), soft_wrap=True, highlight=False)
        for rows in tables(result):
            if len(rows) > 1:
                console.print(on_screen(rows))
    if options.out is not None:
        page = write(result, options.out, command=shlex.join(command))
        progress.print(f"page: {page}", soft_wrap=True, highlight=False)
