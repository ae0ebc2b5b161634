"""Common options and execution of the studies: ``analyze sweep``, ``analyze ablate`` and ``bench accuracy``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vitsplit.cli.flags import from_flags
from vitsplit.cli.values import make_writable
from vitsplit.cli.words import leading_arguments, value_of
from vitsplit.config import Seed, Settings
from vitsplit.engine.override import changed_settings, override
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import split_settings
from vitsplit.recipes.starting_point import starting_config

if TYPE_CHECKING:
    from vitsplit.analysis.runs import Outcome
    from vitsplit.analysis.variants import LeastAlike, Variant
    from vitsplit.train_config import TrainConfig

MakeVariants = Callable[["TrainConfig", "LeastAlike"], "list[Variant]"]
"""Creates variants from the configuration of all runs and a function that selects the least alike layers."""


class StudyOptions(Settings):
    """Options of all studies."""

    data: Path
    """The data set of all runs."""
    out: Path
    """Output folder of the study."""
    recipe: str | None = None
    """Recipe to start from, see `vitsplit recipes`."""
    config: str | None = None
    """Configuration to start from: the config.json of a run."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    """Seeds; every variant is trained once with each."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of runs in parallel, each in its own process."""


@dataclass(frozen=True)
class Study:
    """Description of a study.

    Attributes:
        prog: Name of the command, for errors.
        title: Title of the page.
        notes: Paragraphs below the table.
        grid: Whether to plot a grid of K_t and K_p.
        curves: Whether to plot curves over steps and time.
    """

    prog: str
    title: str
    notes: Sequence[str] = ()
    grid: bool = False
    curves: bool = False


def settings_of_runs(argv: Sequence[str]) -> TrainConfig | None:
    """The configuration from the task, ``--recipe`` and ``--config`` in the arguments; None without a task."""
    words = leading_arguments(argv)
    if not words:
        return None
    return starting_config(words[0], recipe=value_of(argv, "--recipe"), config_file=value_of(argv, "--config"))


def run_study(
    study: Study,
    options: StudyOptions,
    config: TrainConfig,
    make_variants: MakeVariants,
    own_flags: Mapping[str, Sequence[str]],
    *,
    finish: Callable[[list[Variant]], list[Variant]] = lambda variants: variants,
) -> int:
    """Trains missing runs and prints the table; returns the exit status (128 + the number of a signal that stopped it).

    Args:
        study: The study.
        options: The options.
        config: Configuration of all runs.
        make_variants: Creates the variants.
        own_flags: Flags and their values by variant.
        finish: Final changes to the variants.

    Raises:
        ConfigError: A variant is invalid.
        VitsplitError: See ``vitsplit.train``.
    """
    split_settings(config.method, "a study of parts or layers (`vitsplit bench accuracy --methods` compares methods)")
    with_own = with_own_settings(make_variants, own_flags, prog=study.prog)

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        return finish(with_own(config, least_alike))

    from vitsplit.folder_lock import hold_folder

    with hold_folder(options.out):
        return _run(study, options, config, make)


def with_own_settings(make: MakeVariants, flags: Mapping[str, Sequence[str]], *, prog: str) -> MakeVariants:
    """Adds settings of individual variants, which are appended to the variants' titles.

    Args:
        make: Creates the variants.
        flags: Flags and their values by variant.
        prog: Name of the command, for errors.

    Raises:
        ConfigError: From the returned function; there is no such variant or flag.
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
    own = changed_settings(plain, from_flags(plain, flags, prog=f"{prog} --{variant.name}.", prefix=f"{variant.name}."))
    description = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in own.items())
    return replace(variant, settings={**variant.settings, **own}, title=f"{variant.label}, {description}")


def _run(study: Study, options: StudyOptions, config: TrainConfig, make: MakeVariants) -> int:
    from vitsplit import api
    from vitsplit.analysis.advice import least_alike_layers
    from vitsplit.analysis.runs import plan, run_trials
    from vitsplit.analysis.study import Costs, rows
    from vitsplit.analysis.study_report import write_study
    from vitsplit.analysis.training_similarity import cached_similarity
    from vitsplit.analysis.variants import check_variants
    from vitsplit.backbone import open_backbone
    from vitsplit.tasks import open_task

    def least_alike(count: int) -> tuple[int, ...]:
        found = cached_similarity(config, options.data, options.out / "similarity.json")
        return least_alike_layers(found.cka_MM, count, split_settings(config.method, "a study").first_prior_layer)

    description = open_task(config.task, options.data).describe()
    make_writable(options.out)
    variants = make(config, least_alike)
    check_variants(config, variants, open_backbone(config.backbone, only_shapes=True).num_layers)
    trials = plan(config, variants, options.seeds, options.out)
    costs = Costs(description)
    runs = len({trial.folder for trial in trials})
    print(f"{runs} runs: {len(variants)} variants, {len(options.seeds)} seeds; reusing finished runs", file=sys.stderr)
    # In equal time, numbers of steps differ.
    same = len({(trial.config.loop.steps, trial.variant.max_minutes) for trial in trials}) == 1
    steps = f"{trials[0].config.loop.steps} steps" if same and trials[0].variant.max_minutes is None else "steps"
    subtitle = f"{config.name} on {options.data}: {config.backbone.backbone}, {steps} of "
    subtitle += f"{config.loop.batch_size} images, seeds {' '.join(map(str, options.seeds))}"

    def report(outcomes: Sequence[Outcome]) -> None:
        found = rows(trials, outcomes, costs)
        write_study(
            found,
            options.out,
            title=study.title,
            subtitle=subtitle,
            notes=study.notes,
            grid=study.grid,
            curves=study.curves,
        )

    result = run_trials(
        trials, options.data, options.out, train=api.train, processes=options.processes, on_finished=report
    )
    if result.stopped_by is not None:
        print("stopped; the same command resumes the study", file=sys.stderr)
        return 128 + int(getattr(signal, result.stopped_by))
    _print_table(rows(trials, result.outcomes, costs))
    print(f"page: {options.out / 'index.html'}")
    return 0


def _print_table(found: Any) -> None:
    from rich.console import Console

    from vitsplit.analysis.study_report import table
    from vitsplit.report import screen_table

    # Without the column of individual runs, which does not fit into 80 columns; it is on the page.
    (*head, _), cells = table(found)
    Console().print(screen_table(head, [row[:-1] for row in cells], box=None, pad_edge=False))
