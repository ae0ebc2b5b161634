"""``vitsplit bench accuracy``: methods on your data, with an equal budget of steps or of seconds."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitsplit.analysis.runs import Variant
from vitsplit.analysis.variants import LeastAlike
from vitsplit.cli.study_options import MakeVariants, run_study, study_parser
from vitsplit.cli.values import real
from vitsplit.engine.config import TrainConfig
from vitsplit.engine.override import changed_settings, override
from vitsplit.engine.saved_config import flat_to_dict
from vitsplit.errors import ConfigError, RunError
from vitsplit.files import read_json, real_number, whole_number
from vitsplit.ranges import Range

DESCRIPTION = """\
Trains several methods with several seeds on a data set, and shows how good each is: mean and spread, curves over steps
and over time, and what each costs. All have the same number of steps, or with --seconds as many as each takes in the
same time (from a few steps that are timed first, so that every schedule comes to its end).

Every run is an ordinary one, in OUT/runs. Finished runs are recognised by their settings and kept, so the same command
goes on where it stopped. Every setting of `vitsplit train` is a flag here too, and is that of all runs; with a
method's name before it, it is that of one: a probe wants a higher learning rate than a transformer.

  vitsplit bench accuracy segmentation --data my_data --methods vitsplit linear-probe full-finetune lora \\
      --linear-probe.lr 2e-3 --seeds 0 1 2 --out runs/methods
  vitsplit bench accuracy segmentation --data my_data --seconds 600 --out runs/ten-minutes

A method is a name of `vitsplit train --method`, with `:linear` or `:upernet` for another decoder than its own, or with
`:cached` to train on features that are kept (`--cache-features`). The settings of such a one alone are written with a
dash: --vitsplit-cached.cache-features 4.
"""
METHODS = ["vitsplit", "linear-probe", "full-finetune"]
NOTE = (
    "All had the same time: a method's number of steps was found from the time of a few of its steps on random images "
    "of the crop's size. The seconds in the table are those of the runs, reading images included."
)


def main(argv: list[str]) -> int:
    """Runs the verb; the exit status is 128 + the signal's number if a signal stopped it."""
    parser = study_parser("accuracy", DESCRIPTION, family="bench")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME[:DECODER]", help=" ".join(METHODS))
    parser.add_argument(
        "--seconds",
        type=real(Range(0, 1e9, above=True)),
        metavar="S",
        help="of training for every run, in place of --steps",
    )
    by_seconds = any(word.partition("=")[0] == "--seconds" for word in argv)
    return run_study(
        parser,
        argv,
        _variants,
        finish=_equal_seconds,
        title="Methods, side by side",
        notes=[NOTE] if by_seconds else (),
        curves=True,
    )


def _variants(options: argparse.Namespace) -> MakeVariants:
    def make(config: TrainConfig, least_alike: LeastAlike) -> list[Variant]:
        from vitsplit.analysis.bench.workload import method_config

        return [
            Variant(
                name=label.replace(":", "-"),
                title=label,
                settings=changed_settings(config, method_config(config, label)),
            )
            for label in dict.fromkeys(options.methods)
        ]

    return make


def _equal_seconds(variants: list[Variant], config: TrainConfig, options: argparse.Namespace) -> list[Variant]:
    """With ``--seconds``: the variants with as many steps as each takes in that time."""
    if options.seconds is None:
        return variants
    steps = _steps(options, {variant.name: override(config, variant.settings) for variant in variants})
    return [replace(each, settings={**each.settings, "steps": steps[each.name]}) for each in variants]


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


def _steps(options: argparse.Namespace, configs: dict[str, TrainConfig]) -> dict[str, int]:
    """How many steps each method takes in the time: as found when this study first had it."""
    from vitsplit.analysis.bench.budget import steps_within
    from vitsplit.atomic_files import write_json
    from vitsplit.inference.loading import choose_device
    from vitsplit.tasks import open_task

    file = options.out / "steps.json"
    timed = {name: flat_to_dict(config) for name, config in configs.items()}
    known: dict[str, Any] = {"seconds": options.seconds, "settings": {}, "steps": {}}
    if file.is_file():
        known = read_steps(file)
        changed = sorted(name for name in timed.keys() & known["settings"] if timed[name] != known["settings"][name])
        if known["seconds"] != options.seconds or changed:
            what = f"the settings of {', '.join(changed)} were others" if changed else f"it was {known['seconds']:g} s"
            raise ConfigError(
                f"{file} has the steps of this study for --seconds {options.seconds:g}, but {what} when they were "
                "timed. Give another --out."
            )
    new = {name: config for name, config in configs.items() if name not in known["steps"]}
    if new:
        classes = open_task(next(iter(configs.values())).task, options.data).describe().get("classes", ())
        known["steps"] |= steps_within(
            new,
            options.seconds,
            num_classes=len(classes),
            device=choose_device(None),
            say=lambda text: print(text, file=sys.stderr),
        )
        known["settings"] |= {name: timed[name] for name in new}
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return dict(known["steps"])
