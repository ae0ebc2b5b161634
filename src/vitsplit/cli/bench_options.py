"""Common options and output of ``vitsplit bench train-step`` and ``vitsplit bench predict``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from vitsplit.cli.flags import from_flags
from vitsplit.cli.values import ImageSize, Limit, NumClasses, Switch, make_writable
from vitsplit.cli.words import leading_arguments
from vitsplit.config import Settings
from vitsplit.engine.override import changed_settings, override
from vitsplit.recipes import recipe
from vitsplit.train_config import TrainConfig

DEFAULT_RECIPE = "ade20k-small"
Methods = Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.arg(metavar="NAME[:DECODER] [NAME[:DECODER] ...]")]


class BenchOptions(Settings):
    """Options of both benchmarks."""

    size: ImageSize | None = None
    """Height and width of the images; None: the recipe's crop size."""
    num_classes: NumClasses | None = None
    """Number of classes; None: that of the recipe's data set."""
    warmup: Limit = 2
    """Rounds of warm-up."""
    device: str | None = None
    """Device such as cpu, cuda or cuda:1; None: the first GPU, else the CPU."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of CPU threads; None: PyTorch's default."""
    json: Switch = False
    """Print the results as JSON."""
    out: Path | None = None
    """Output folder for JSON, a picture and a page."""


def recipe_of(argv: Sequence[str]) -> TrainConfig:
    """The configuration of the recipe that is the first argument."""
    return recipe(next(iter(leading_arguments(argv)), DEFAULT_RECIPE))


def own_settings(config: TrainConfig, flags: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """Settings by method, of flags that only other methods than that of the recipe have."""
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
    """Measures with a progress display, and shows the results.

    Args:
        measure: Function that measures; its argument is a function that displays progress messages.
        options: The options.
        to_json: Converts the results to a JSON-compatible dictionary.
        describe: Describes the setting in words.
        tables: Converts the results to tables: a header and rows each.
        write: Writes the results and a page to a folder, with ``command``; returns the page.
        command: The command line.
    """
    import torch
    from rich.console import Console

    from vitsplit.analysis.bench.report import terminal_table

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.out is not None:
        make_writable(options.out)
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
                console.print(terminal_table(rows))
    if options.out is not None:
        page = write(result, options.out, command=shlex.join(command))
        progress.print(f"page: {page}", soft_wrap=True, highlight=False)
