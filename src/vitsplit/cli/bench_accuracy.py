"""``vitsplit bench accuracy``: compares methods on a data set with equal steps or equal training time."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from vitsplit.analysis.variants import LeastAlike, Variant
from vitsplit.cli.flags import FromArgv, MethodFlags, Prefixed
from vitsplit.cli.study_options import Study, StudyOptions, run_study, settings_of_runs
from vitsplit.engine.override import changed_settings, override
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import read_json, real_number, whole_number
from vitsplit.methods.split.config import split_settings
from vitsplit.saved_config import flat_to_dict
from vitsplit.train_config import TrainConfig

NOTE = (
    "All methods had the same training time: the number of steps of each follows from the time of its first steps on "
    "the training data. Seconds in the table were measured in the runs; of runs that choose their layers, they are "
    "without the short runs of the other candidates, which the given time includes."
)
AUTO = "auto"
"""In place of a decoder: each run chooses its layers."""
METHODS = ("vitsplit", "linear-probe", "full-finetune")


@dataclass(frozen=True)
class _Compared:
    """An entry of ``--methods``.

    Attributes:
        name: Its name, also the prefix of its flags.
        method: ``NAME``, ``NAME:DECODER`` or ``NAME:cached``, see ``workload.method_config``.
        auto: Whether its runs choose their layers.
        title: Display name.
    """

    name: str
    method: str
    auto: bool
    title: str

    @classmethod
    def parse(cls, text: str) -> _Compared:
        """Parses ``[NAME=]METHOD[:DECODER|:cached|:auto]``."""
        name, equals, label = text.rpartition("=")
        method, _, form = label.partition(":")
        auto = form == AUTO
        return cls(
            name=name if equals else label.replace(":", "-"),
            method=method if auto else label,
            auto=auto,
            title=name or label,
        )


def accuracy(
    task_name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]],
    /,
    *,
    options: StudyOptions,
    methods: Annotated[
        tuple[str, ...], Field(min_length=1), tyro.conf.arg(metavar="[NAME=]METHOD[:FORM] [[NAME=]METHOD[:FORM] ...]")
    ] = METHODS,
    minutes: Annotated[float, Field(gt=0, le=1e7)] | None = None,
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None,
    lrs: tuple[Annotated[float, Field(gt=0, le=1e3)], ...] = (),
    config: Annotated[TrainConfig, FromArgv(settings_of_runs)],
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()],
    method_flags: Annotated[Mapping[str, Sequence[str]], MethodFlags(METHODS)],
) -> int:
    """Train several methods with several seeds on a data set, and compare their accuracy.

    Shows mean and standard deviation, curves over steps and over time, and the cost of each method. All have the same
    number of steps or, with --minutes, the same training time: the number of steps then follows from the time of the
    first steps, so that every learning rate schedule is completed. With --lrs, every method is trained with each of the
    learning rates with the first seed, and with the best of them with all seeds.

    Runs are written to OUT/runs. Finished runs with the same settings are reused, so the same command resumes a study
    that was stopped. Every setting of `vitsplit train` is a flag that applies to all runs, or to one method if its name
    is put before it.

    A method is a name of `vitsplit train --method`, optionally with a form: `:linear` or `:upernet` for another decoder
    than its default, `:cached` for training on cached features (`--cache-features`), or `:auto` for runs that choose
    their layers (`--layers auto`). The same method can be given several times under different names. In flags, the
    colon is replaced by a dash: --vitsplit-cached.cache-features 4.

    Examples:
        vitsplit bench accuracy segmentation --data my_data --methods vitsplit linear-probe full-finetune lora \\
            --linear-probe.lr 2e-3 --seeds 0 1 2 --out runs/methods
        vitsplit bench accuracy segmentation --data my_data --minutes 10 --lrs 3e-4 1e-3 3e-3 --out runs/ten-minutes
        vitsplit bench accuracy segmentation --data my_data --minutes 30 --out runs/parts \\
            --methods vitsplit vitsplit:auto alone=vitsplit --alone.no-prior-head --alone.no-fusion

    Args:
        task_name: The task.
        options: Options of every study.
        methods: The methods to compare.
        minutes: Training time of every run in minutes, without evaluations, in place of --steps.
        seconds: Former unit of --minutes.
        lrs: Learning rates to choose from for each method without one of its own (--linear-probe.lr).
        config: Settings of all runs.
        own: Settings of individual methods.
        method_flags: Flags that only other methods than that of the configuration have.
    """
    if seconds is not None:
        if minutes is not None:
            raise ConfigError(f"--minutes {minutes:g} and --seconds {seconds:g} were both given. Omit --seconds.")
        minutes = seconds / 60
        print(f"warning: --seconds {seconds:g} has been renamed to --minutes {minutes:g}", file=sys.stderr)
    compared = list(dict.fromkeys(map(_Compared.parse, methods)))
    _check_names([each.name for each in compared])

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        from vitsplit.analysis.bench.workload import method_config

        return [
            Variant(
                name=each.name,
                title=each.title,
                settings=changed_settings(config, method_config(config, each.method)),
                layers="auto" if each.auto else "recipe",
                max_minutes=minutes if each.auto else None,
            )
            for each in compared
        ]

    def in_equal_time(variants: list[Variant]) -> list[Variant]:
        """The variants with the number of steps that each takes in the given time."""
        for each in variants:
            if each.layers == "auto":
                _check_auto(override(config, each.settings), each.name)
        if minutes is None:
            return variants
        configs = {each.name: override(config, each.settings) for each in variants if each.layers == "recipe"}
        steps = _steps_per_method(options, minutes, configs)
        return [
            replace(each, settings={**each.settings, "steps": steps[each.name]}) if each.name in steps else each
            for each in variants
        ]

    notes = [NOTE] if minutes is not None else []
    if lrs:
        notes.append(
            f"The learning rate of each method is the best of {', '.join(f'{lr:g}' for lr in lrs)} with the first seed."
        )
    study = Study("vitsplit bench accuracy", "Comparison of methods", notes=notes, curves=True)
    for each in compared if method_flags else ():
        of_method = method_flags.get(each.method.partition(":")[0], [])
        own = {**own, each.name: [*of_method, *own.get(each.name, [])]}
    if not lrs:
        return run_study(study, options, config, make, own, finish=in_equal_time)

    def rates_of(variant: Variant) -> list[Variant]:
        has_own = any(word.partition("=")[0] in ("--lr", f"--{task_name}.lr") for word in own.get(variant.name, ()))
        return [variant] if has_own else _with_rates(variant, lrs)

    def with_rates(variants: list[Variant]) -> list[Variant]:
        return [each for variant in in_equal_time(variants) for each in rates_of(variant)]

    def with_best_rates(variants: list[Variant]) -> list[Variant]:
        means = _mean_scores(options.out / "results.json")
        return [max(rates_of(each), key=lambda each: means[each.name]) for each in in_equal_time(variants)]

    first = replace(options, seeds=options.seeds[:1])
    return run_study(study, first, config, make, own, finish=with_rates) or run_study(
        study, options, config, make, own, finish=with_best_rates
    )


def _check_names(names: Sequence[str]) -> None:
    """Checks the names of ``--methods``, which are prefixes of flags.

    Raises:
        ConfigError: One has other characters, or is not unique.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ConfigError(f"--methods {name}=...: a name has letters, digits, '-' and '_'.")
        if names.count(name) > 1:
            raise ConfigError(f"--methods: two are called {name}. Give one of them another name: other={name}.")


def _check_auto(config: TrainConfig, name: str) -> None:
    """Checks that a method has layers to choose, before others are trained.

    Raises:
        ConfigError: It has none.
    """
    from vitsplit.analysis.training_similarity import check_choice

    check_choice(config, f"--methods {name}: {AUTO}")
    if not split_settings(config.method, AUTO).task_head:
        raise ConfigError(f"--methods {name}: {AUTO} chooses the blocks of the task head. Omit --{name}.no-task-head.")


def _with_rates(variant: Variant, rates: Sequence[float]) -> list[Variant]:
    """A method with each learning rate."""
    return [
        replace(
            variant,
            name=f"{variant.name}-lr{rate:g}",
            title=f"{variant.label}, lr {rate:g}",
            settings={**variant.settings, "lr": rate},
        )
        for rate in dict.fromkeys(rates)
    ]


def _mean_scores(file: Path) -> dict[str, float]:
    """The mean score of every variant of a finished study; that of a run without a finite score is the lowest."""
    found = read_json(file, error=RunError, advice="Run the command again.")["variants"]
    return {each["name"]: -math.inf if each["mean"] is None else each["mean"] for each in found}


def read_steps(file: Path) -> dict[str, Any]:
    """Reads the file written by ``_steps_per_method``.

    Raises:
        RunError: The file is invalid.
    """
    from vitsplit.engine.run_folder import MOST_STEPS

    advice = "Give another --out, or delete the file to time the steps again."
    known = read_json(file, error=RunError, advice=advice)
    groups = [known.get(name) for name in ("settings", "steps")] if isinstance(known, dict) else []
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise RunError(f"{file}: invalid. {advice}")
    real_number(known.get("seconds"), f"{file}: seconds", 0.0, error=RunError, advice=advice)
    for name, steps in known["steps"].items():
        whole_number(steps, f"{file}: steps of {name}", 1, MOST_STEPS, error=RunError, advice=advice)
    return {name: known[name] for name in ("seconds", "settings", "steps")}


def _steps_per_method(options: StudyOptions, minutes: float, configs: dict[str, TrainConfig]) -> dict[str, int]:
    """Number of steps of each method in the given time; measured once per study and saved."""
    import torch

    from vitsplit.analysis.short_runs import steps_within
    from vitsplit.atomic_files import write_json
    from vitsplit.memory import available_cores

    file, seconds = options.out / "steps.json", 60 * minutes
    timed = {name: flat_to_dict(config) for name, config in configs.items()}
    known: dict[str, Any] = {"seconds": seconds, "settings": {}, "steps": {}}
    if file.is_file():
        known = read_steps(file)
        changed = sorted(name for name in timed.keys() & known["settings"] if timed[name] != known["settings"][name])
        if not math.isclose(known["seconds"], seconds) or changed:
            before = f"--minutes {known['seconds'] / 60:g}"
            difference = f"other settings of {', '.join(changed)}" if changed else before
            raise ConfigError(f"{file} was measured with {difference}, not with this command. Give another --out.")
    new = {name: config for name, config in configs.items() if name not in known["steps"]}
    if new:
        print(f"timing the first steps of {', '.join(new)}", file=sys.stderr)
        # As many threads as each of the runs has, see `analysis.processes`.
        threads = torch.get_num_threads()
        torch.set_num_threads(min(threads, max(1, available_cores() // options.processes)))
        try:
            known["steps"] |= steps_within(new, options.data, options.out, seconds=seconds)
        finally:
            torch.set_num_threads(threads)
        known["settings"] |= {name: timed[name] for name in new}
        write_json(file, known)
    return dict(known["steps"])
