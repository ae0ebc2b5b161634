"""What ``vitsplit analyze sweep``, ``ablate`` and ``bench accuracy`` have in common: words, and how a study is run."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.cli.options import config_from_cli, split_by_method, split_by_name
from vitsplit.cli.values import whole, writable
from vitsplit.engine.override import changed_settings, override
from vitsplit.engine.starting_point import starting_config
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import split_settings
from vitsplit.tasks import TASKS

if TYPE_CHECKING:
    from vitsplit.analysis.runs import Outcome, Variant
    from vitsplit.analysis.variants import LeastAlike
    from vitsplit.engine.config import TrainConfig

MakeVariants = Callable[["TrainConfig", "LeastAlike"], "list[Variant]"]
"""The configuration of all runs, and what chooses the least alike layers, to the variants."""
Finish = Callable[["list[Variant]", "TrainConfig", argparse.Namespace], "list[Variant]"]
"""Variants with all their settings, the configuration of all runs, and the words, to what is trained."""


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
    parser.add_argument("learn", metavar="TASK", nargs="?", choices=TASKS.names(), help=", ".join(TASKS.names()))
    parser.add_argument("--data", metavar="FOLDER", type=Path, help="the data set of all runs (required)")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="the study's folder (required)")
    parser.add_argument("--recipe", metavar="NAME", help="settings to start from: `vitsplit recipes` lists them")
    parser.add_argument("--config", metavar="FILE", help="settings to start from: a config.json of a run")
    parser.add_argument("--seeds", metavar="SEED", type=whole(0, 2**63 - 1), nargs="+", default=[0], help="default: 0")
    parser.add_argument(
        "--processes",
        metavar="N",
        type=whole(1, 256),
        default=1,
        help="runs at once, each in its own process; default: 1",
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text, and every setting of the runs")
    return parser


def run_study(
    parser: argparse.ArgumentParser,
    argv: list[str],
    make_variants: Callable[[argparse.Namespace], MakeVariants],
    *,
    finish: Finish = lambda variants, config, options: variants,
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
    flags = split_by_name(rest)
    labels = getattr(options, "methods", [])
    rest, of_methods = split_by_method(
        base.flat(base.task.name), flags.pop("", []), [label.partition(":")[0] for label in labels]
    )
    config = config_from_cli(base, rest, prog=parser.prog)
    for label in labels if of_methods else ():
        name = label.replace(":", "-")
        flags[name] = [*of_methods.get(label.partition(":")[0], []), *flags.get(name, [])]
    split_settings(config.method, "a study of parts or layers (`vitsplit bench accuracy --methods` compares methods)")
    with_own = with_own_settings(make_variants(options), flags, prog=parser.prog)

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        return finish(with_own(config, least_alike), config, options)

    from vitsplit.engine.folder_lock import hold_folder

    with hold_folder(options.out):
        return _run(options, config, make, title=title, notes=notes, grid=grid, curves=curves)


def with_own_settings(make: MakeVariants, flags: Mapping[str, Sequence[str]], *, prog: str) -> MakeVariants:
    """Variants of which some have settings of their own, which their titles then say.

    Args:
        make: Makes them without.
        flags: Flags and their values by the variant's name.
        prog: The command as it was called, for errors.

    Raises:
        ConfigError: (from what is returned) There is no such variant or flag.
    """

    def made(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        variants = make(config, least_alike)
        names = [variant.name for variant in variants]
        for name in flags.keys() - set(names):
            raise ConfigError(f"--{name}.: this study has no variant '{name}'. Its variants: {', '.join(names)}.")
        return [_with_own_settings(each, config, flags.get(each.name, ()), prog=prog) for each in variants]

    return made


def _with_own_settings(variant: Variant, config: TrainConfig, flags: Sequence[str], *, prog: str) -> Variant:
    if not flags:
        return variant
    plain = override(config, variant.settings)
    own = changed_settings(plain, config_from_cli(plain, flags, prog=prog, prefix=f"{variant.name}."))
    said = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in own.items())
    return replace(variant, settings={**variant.settings, **own}, title=f"{variant.label}, {said}")


def _run(
    options: argparse.Namespace,
    config: TrainConfig,
    make: MakeVariants,
    *,
    title: str,
    notes: Sequence[str],
    grid: bool,
    curves: bool,
) -> int:
    from vitsplit import api
    from vitsplit.analysis.advice import least_alike_layers
    from vitsplit.analysis.auto_layers import remembered_similarity
    from vitsplit.analysis.runs import plan, run_trials
    from vitsplit.analysis.study import Costs, rows
    from vitsplit.analysis.study_report import write_study
    from vitsplit.analysis.variants import check_variants
    from vitsplit.backbone import open_backbone
    from vitsplit.tasks import open_task

    def least_alike(count: int) -> tuple[int, ...]:
        found = remembered_similarity(config, options.data, options.out / "similarity.json")
        return least_alike_layers(found.cka_MM, count, split_settings(config.method, "a study").first_prior_layer)

    description = open_task(config.task, options.data).describe()
    writable(options.out)
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

    result = run_trials(
        trials, options.data, options.out, train=api.train, processes=options.processes, on_finished=report
    )
    if result.stopped_by is not None:
        print("stopped; the same command goes on where it stopped", file=sys.stderr)
        return 128 + int(getattr(signal, result.stopped_by))
    _print_table(rows(trials, result.outcomes, costs))
    print(f"page: {options.out / 'index.html'}")
    return 0


def _print_table(found: Any) -> None:
    from rich.console import Console

    from vitsplit.analysis.study_report import table
    from vitsplit.report import screen_table

    # The runs of every seed are in the page; a terminal of 80 columns has no room for them.
    (*head, _), cells = table(found)
    Console().print(screen_table(head, [row[:-1] for row in cells], no_wrap=True, box=None, pad_edge=False))
