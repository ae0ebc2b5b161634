"""``vitsplit bench accuracy``: methods on your data, with an equal budget of steps or of seconds."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vitsplit.analysis.runs import Variant
from vitsplit.analysis.variants import LeastAlike
from vitsplit.cli.study_options import MakeVariants, run_study, study_parser
from vitsplit.training.config import TrainConfig

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

A method is a name of `vitsplit train --method`, with `:linear` or `:upernet` for another decoder than its own.
"""
METHODS = ["vitsplit", "linear-probe", "full-finetune"]
NOTES = (
    "With an equal budget of seconds a method's number of steps was found from the time of a few of its steps on "
    "random images of the crop's size; the seconds in the table are those of the runs, reading images included.",
)


def main(argv: list[str]) -> int:
    """Runs the verb; the exit status is 128 + the signal's number if a signal stopped it."""
    parser = study_parser("accuracy", DESCRIPTION, family="bench")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME[:DECODER]", help=" ".join(METHODS))
    parser.add_argument("--seconds", type=float, metavar="S", help="of training for every run, in place of --steps")
    return run_study(parser, argv, _variants, title="Methods, side by side", notes=NOTES, curves=True)


def _variants(options: argparse.Namespace) -> MakeVariants:
    def make(config: TrainConfig[Any], least_alike: LeastAlike) -> list[Variant]:
        from vitsplit.bench.workload import method_config

        configs = {label: method_config(config, label) for label in dict.fromkeys(options.methods)}
        steps = None if options.seconds is None else _steps(options, configs)
        variants = []
        for label, found in configs.items():
            settings: dict[str, Any] = {"method": found.method, "decoder": found.baseline.decoder}
            if steps is not None:
                settings["steps"] = steps[label]
            variants.append(Variant(name=label.replace(":", "-"), title=label, settings=settings))
        return variants

    return make


def _steps(options: argparse.Namespace, configs: dict[str, TrainConfig[Any]]) -> dict[str, int]:
    """How many steps each method takes in the time: as found the first time that this study was begun."""
    import json

    from vitsplit.bench.budget import steps_within
    from vitsplit.errors import ConfigError
    from vitsplit.inference.predictor import choose_device
    from vitsplit.tasks import open_task
    from vitsplit.training.atomic import write_json

    if not options.seconds > 0:
        raise ConfigError(f"--seconds must be above 0, not {options.seconds:g}.")
    file = options.out / "steps.json"
    known: dict[str, int] = {}
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        known = found["steps"] if found["seconds"] == options.seconds else {}
    if not configs.keys() <= known.keys():
        classes = open_task(next(iter(configs.values())), options.data).describe().get("classes", ())
        known = steps_within(
            configs,
            options.seconds,
            num_classes=len(classes),
            device=choose_device(None),
            say=lambda text: print(text, file=sys.stderr),
        )
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"seconds": options.seconds, "steps": known})
    return known
