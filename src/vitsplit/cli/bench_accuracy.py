"""``vitsplit bench accuracy``: methods on your data, with an equal budget of steps or of seconds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field

from vitsplit.analysis.runs import Variant
from vitsplit.analysis.variants import LeastAlike
from vitsplit.cli.flags import FromWords, OfMethods, Prefixed
from vitsplit.cli.study_options import Study, StudyOptions, run_study, settings_of_runs
from vitsplit.engine.override import changed_settings, override
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import read_json, real_number, whole_number
from vitsplit.saved_config import flat_to_dict
from vitsplit.train_config import TrainConfig

NOTE = (
    "All had the same time: a method's number of steps was found from the time of a few of its steps on random images "
    "of the crop's size. The seconds in the table are those of the runs, reading images included."
)
METHODS = ("vitsplit", "linear-probe", "full-finetune")


def accuracy(
    learn: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]],
    /,
    *,
    options: StudyOptions,
    methods: Annotated[
        tuple[str, ...], Field(min_length=1), tyro.conf.arg(metavar="NAME[:DECODER] [NAME[:DECODER] ...]")
    ] = METHODS,
    seconds: Annotated[float, Field(gt=0, le=1e9)] | None = None,
    config: Annotated[TrainConfig, FromWords(settings_of_runs)],
    own: Annotated[Mapping[str, Sequence[str]], Prefixed()],
    of_methods: Annotated[Mapping[str, Sequence[str]], OfMethods(METHODS)],
) -> int:
    """Train several methods with several seeds on a data set, and show how good each is.

    Shows mean and spread, curves over steps and over time, and what each costs. All have the same number of steps, or
    with --seconds as many as each takes in the same time (from a few steps that are timed first, so that every schedule
    comes to its end).

    Every run is an ordinary one, in OUT/runs. Finished runs are recognised by their settings and kept, so the same
    command continues where it stopped. Every setting of `vitsplit train` is a flag here too, and is that of all runs;
    with a method's name before it, it is that of one: a probe wants a higher learning rate than a transformer.

    A method is a name of `vitsplit train --method`, with `:linear` or `:upernet` for another decoder than its own, or
    with `:cached` to train on cached features (`--cache-features`). The settings of such a one alone are written with a
    dash: --vitsplit-cached.cache-features 4.

    Examples:
        vitsplit bench accuracy segmentation --data my_data --methods vitsplit linear-probe full-finetune lora \\
            --linear-probe.lr 2e-3 --seeds 0 1 2 --out runs/methods
        vitsplit bench accuracy segmentation --data my_data --seconds 600 --out runs/ten-minutes

    Args:
        learn: The task.
        options: Options of every study.
        methods: What is compared.
        seconds: Of training for every run, in place of --steps.
        config: Settings of all runs.
        own: Settings of single methods.
        of_methods: Flags of methods other than that of the settings.
    """

    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        from vitsplit.analysis.bench.workload import method_config

        return [
            Variant(
                name=label.replace(":", "-"),
                title=label,
                settings=changed_settings(config, method_config(config, label)),
            )
            for label in dict.fromkeys(methods)
        ]

    def with_equal_seconds(variants: list[Variant]) -> list[Variant]:
        """The variants with as many steps as each takes in that time."""
        if seconds is None:
            return variants
        steps = _steps(options, seconds, {variant.name: override(config, variant.settings) for variant in variants})
        return [replace(each, settings={**each.settings, "steps": steps[each.name]}) for each in variants]

    notes = [NOTE] if seconds is not None else ()
    study = Study("vitsplit bench accuracy", "Methods, side by side", notes=notes, curves=True)
    for label in methods if of_methods else ():
        name = label.replace(":", "-")
        own = {**own, name: [*of_methods.get(label.partition(":")[0], []), *own.get(name, [])]}
    return run_study(study, options, config, make, own, finish=with_equal_seconds)


def read_steps(file: Path) -> dict[str, Any]:
    """What ``_steps`` wrote.

    Raises:
        RunError: It cannot be read.
    """
    from vitsplit.engine.run_folder import MOST_STEPS

    advice = "Give another --out, or delete it: the steps are then timed again."
    known = read_json(file, error=RunError, advice=advice)
    groups = [known.get(name) for name in ("settings", "steps")] if isinstance(known, dict) else []
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise RunError(f"{file}: not the steps of a study. {advice}")
    real_number(known.get("seconds"), f"{file}: seconds", 0.0, error=RunError, advice=advice)
    for name, steps in known["steps"].items():
        whole_number(steps, f"{file}: steps of {name}", 1, MOST_STEPS, error=RunError, advice=advice)
    return {name: known[name] for name in ("seconds", "settings", "steps")}


def _steps(options: StudyOptions, seconds: float, configs: dict[str, TrainConfig]) -> dict[str, int]:
    """How many steps each method takes in the time: as found when this study first had it."""
    from vitsplit.analysis.bench.budget import steps_within
    from vitsplit.atomic_files import write_json
    from vitsplit.inference.loading import choose_device
    from vitsplit.tasks import open_task

    file = options.out / "steps.json"
    timed = {name: flat_to_dict(config) for name, config in configs.items()}
    known: dict[str, Any] = {"seconds": seconds, "settings": {}, "steps": {}}
    if file.is_file():
        known = read_steps(file)
        changed = sorted(name for name in timed.keys() & known["settings"] if timed[name] != known["settings"][name])
        if known["seconds"] != seconds or changed:
            what = f"the settings of {', '.join(changed)} were others" if changed else f"it was {known['seconds']:g} s"
            raise ConfigError(
                f"{file} has the steps of this study for --seconds {seconds:g}, but {what} when they were "
                "timed. Give another --out."
            )
    new = {name: config for name, config in configs.items() if name not in known["steps"]}
    if new:
        classes = open_task(next(iter(configs.values())).task, options.data).describe().get("classes", ())
        known["steps"] |= steps_within(
            new,
            seconds,
            num_classes=len(classes),
            device=choose_device(None),
            say=lambda text: print(text, file=sys.stderr),
        )
        known["settings"] |= {name: timed[name] for name in new}
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return dict(known["steps"])
