"""What ``vitsplit analyze sweep`` and ``ablate`` have in common: their words, and how a study is run and shown."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.cli.options import config_from_cli
from vitsplit.cli.values import positive
from vitsplit.errors import ConfigError
from vitsplit.tasks import TASKS
from vitsplit.training.starting_point import starting_config

if TYPE_CHECKING:
    from vitsplit.analysis.runs import Outcome, Variant
    from vitsplit.analysis.variants import LeastAlike
    from vitsplit.training.config import TrainConfig

MakeVariants = Callable[["TrainConfig[Any]", "LeastAlike"], "list[Variant]"]
"""The configuration of all runs, and what chooses the least alike layers, to the variants."""


def study_parser(verb: str, description: str, *, family: str = "analyze") -> argparse.ArgumentParser:
    """A parser with the words of every study."""
    parser = argparse.ArgumentParser(
        prog=f"vitsplit {family} {verb}",
        usage=f"vitsplit {family} {verb} TASK --data FOLDER --out FOLDER [options] [--SETTING VALUE ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("learn", metavar="TASK", nargs="?", choices=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="the data set of all runs (required)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="the study's folder (required)")
    parser.add_argument("--recipe", metavar="NAME", help="settings to start from: `vitsplit recipes` lists them")
    parser.add_argument("--config", metavar="FILE", help="settings to start from: a config.json of a run")
    parser.add_argument("--seeds", metavar="SEED", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument(
        "--processes", metavar="N", type=positive, default=1, help="runs at once, each in its own process; default: 1"
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text, and every setting of the runs")
    return parser


def run_study(
    parser: argparse.ArgumentParser,
    argv: list[str],
    make_variants: Callable[[argparse.Namespace], MakeVariants],
    *,
    title: str,
    notes: Sequence[str] = (),
    grid: bool = False,
    curves: bool = False,
) -> int:
    """Reads the words, trains what is missing, and shows the table; returns the exit status.

    Raises:
        ConfigError: Words are missing or wrong, or a variant cannot be.
        VitsplitError: What a run raises.
    """
    options, rest = parser.parse_known_args(argv)
    if options.help or options.learn is None:
        parser.print_help()
        if options.learn is None:
            return 0 if options.help else 2
    base = starting_config(options.learn, recipe=options.recipe, config_file=options.config)
    if options.help:
        print("\nsettings of all runs:\n")
        config_from_cli(base, ["--help"], prog=parser.prog)
    if options.data is None or options.out is None:
        raise ConfigError("Which images, and where to? Give --data FOLDER and --out FOLDER.")
    config = config_from_cli(base, rest, prog=parser.prog)
    if config.method != "vitsplit":
        raise ConfigError(
            f"--method {config.method}: a study of the parts and layers of ViT-Split is of --method vitsplit."
        )
    return _run(options, config, make_variants(options), title=title, notes=notes, grid=grid, curves=curves)


def _run(
    options: argparse.Namespace,
    config: TrainConfig[Any],
    make: MakeVariants,
    *,
    title: str,
    notes: Sequence[str],
    grid: bool,
    curves: bool,
) -> int:
    from vitsplit.analysis.auto_layers import remembered_similarity
    from vitsplit.analysis.least_alike import least_alike_layers
    from vitsplit.analysis.runs import plan, run_trials
    from vitsplit.analysis.study import Costs, rows
    from vitsplit.analysis.study_report import write_study
    from vitsplit.analysis.variants import check_variants
    from vitsplit.backbone import open_backbone
    from vitsplit.tasks import open_task

    def least_alike(count: int) -> tuple[int, ...]:
        found = remembered_similarity(config, options.data, options.out / "similarity.json")
        return least_alike_layers(found.cka_MM, count, config.split.first_prior_layer)

    description = open_task(config, options.data).describe()
    variants = make(config, least_alike)
    check_variants(config, variants, open_backbone(config.backbone, only_shapes=True).num_layers)
    trials = plan(config, variants, options.seeds, options.out)
    costs = Costs(description)
    runs = len({trial.folder for trial in trials})
    print(f"{runs} runs: {len(variants)} variants, {len(options.seeds)} seeds; finished ones are kept", file=sys.stderr)
    subtitle = f"{config.name} on {options.data}: {config.backbone.backbone}, {config.loop.steps} steps of "
    subtitle += f"{config.loop.batch_size} images, seeds {' '.join(map(str, options.seeds))}"

    def report(outcomes: Sequence[Outcome]) -> None:
        found = rows(trials, outcomes, costs)
        write_study(found, options.out, title=title, subtitle=subtitle, notes=notes, grid=grid, curves=curves)

    result = run_trials(trials, options.data, options.out, processes=options.processes, on_finished=report)
    if result.stopped_by is not None:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return 128 + int(getattr(signal, result.stopped_by))
    _print_table(rows(trials, result.outcomes, costs))
    print(f"page: {options.out / 'index.html'}")
    return 0


def _print_table(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from vitsplit.analysis.study_report import table

    # The runs of every seed are in the page; a terminal of 80 columns has no room for them.
    (*head, _), cells = table(found)
    shown = Table(box=None, pad_edge=False)
    for index, column in enumerate(head):
        shown.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in cells:
        shown.add_row(*row[:-1])
    Console().print(shown)
