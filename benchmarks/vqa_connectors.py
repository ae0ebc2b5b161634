"""Compares connectors with the same questions, training time and language model, over several seeds.

    python benchmarks/vqa_connectors.py --out runs/connectors --minutes 10 --processes 2
    python benchmarks/vqa_connectors.py --out runs/connectors --data my_data --steps 600

Without ``--data``, the questions are on generated scenes and balanced (``vitsplit.sample``): every question has each of
its answers equally often, so accuracy above chance requires the image. Connector and language model are tuned together
from the start: a language model that was first trained without images did not learn to use them (docs/benchmarks.md).
The third variant is trained with images of other questions, and shows the accuracy without image information. Finished
runs are not repeated, and interrupted runs are resumed. Other flags are those of `vitsplit train vqa`, for all runs.

On scenes, only the first layers of the language model are used (``--layers``), because with all layers too few
questions are seen in minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import torch

import vitsplit
from vitsplit.analysis.runs import Outcome, Variant, plan, run_trials
from vitsplit.cli.flags import from_flags
from vitsplit.data.new_folder import new_folder
from vitsplit.engine.override import override
from vitsplit.recipes.starting_point import starting_config
from vitsplit.sample import write_segmentation_set
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.language import find_language_model
from vitsplit.tasks.vqa.samples import open_samples
from vitsplit.train_config import TrainConfig

SCENES = {
    "train": 3000, "val": 160, "size": (98, 126), "objects": (1, 3), "cover": (0.04, 0.25), "balanced": True,
}  # fmt: skip
"""The generated data set: few and large objects, of which the frozen features tell kind and color."""
COMMON = {"backbone": "dinov2-small-focus", "system_prompt": "", "tune": "full", "cache_features": 1}
ON_SCENES = {
    **COMMON,
    "crop_size": SCENES["size"],
    "visual_grid": (2, 3),
    "conversation": "v1",
    "questions_per_image": 16,
    "max_new_tokens": 4,
    "num_tuned_layers": 1,
    "lr": 1e-3,
    "language_model_lr_scale": 0.5,
    "batch_size": 4,
}
"""Short prompts and few visual tokens: most of the time goes into the language model."""
ON_OTHER_DATA = {**COMMON, "visual_grid": (4, 4), "lr": 3e-4, "steps": 300, "eval_every": 300, "batch_size": 4}
LAYERS_ON_SCENES = 6
VARIANTS = {
    "vitsplit": Variant(name="vitsplit", settings={"connector": "vitsplit"}, title="ViT-Split"),
    "mlp2x": Variant(name="mlp2x", settings={"connector": "mlp2x"}, title="two layers (LLaVA-1.5)"),
    "shuffled": Variant(name="shuffled", settings={"shuffle_images": True}, title="ViT-Split, other images"),
}
EVALUATIONS = 3
"""Evaluations of a run whose length is given in minutes; their time is not counted."""
TIMED_SECONDS, MOST_STEPS = 40, 10**6
"""Length of a timed run, and a number of steps beyond it."""


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of questions and images (default: scenes, generated in OUT)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    parser.add_argument("--minutes", type=float, help="training time of every run, in place of --steps")
    parser.add_argument(
        "--layers",
        type=int,
        help=f"first layers of the language model (default: {LAYERS_ON_SCENES} on scenes, else all)",
    )
    options, flags = parser.parse_known_args()

    base = override(starting_config("vqa"), ON_SCENES if options.data is None else ON_OTHER_DATA)
    base = from_flags(base, flags)
    layers = options.layers or (LAYERS_ON_SCENES if options.data is None else None)
    if layers is not None:
        base = override(base, {"language_model": str(with_first_layers(base, layers, options.out))})
    data = options.data or generated(options.out)
    variants = [VARIANTS[name] for name in options.variants]
    if options.minutes is not None:
        variants = with_equal_minutes(base, variants, data, options)
    # Runs of several lengths share scenes and timed runs.
    out = options.out if options.minutes is None else options.out / f"{options.minutes:g}-minutes"
    trials = plan(base, variants, options.seeds, out)
    result = run_trials(trials, data, out, train=vitsplit.train, processes=options.processes)
    print(f"without seeing: at most {blind_accuracy(data):.4f}")
    show(result.outcomes)


def generated(out: Path) -> Path:
    """The generated scenes, written if they are missing."""
    data = out / "scenes"
    if not data.exists():
        print(f"generating {SCENES['train']} + {SCENES['val']} scenes in {data}", flush=True)
        write_segmentation_set(data, **SCENES)
    return data


def with_first_layers(config: TrainConfig, layers: int, out: Path) -> Path:
    """A folder with the first layers of the language model, which is tuned, so that more steps fit in the time."""
    from transformers import AutoModelForCausalLM

    folder = out / f"language-model-{layers}"
    if not folder.exists():
        source = find_language_model(config.task)
        model = AutoModelForCausalLM.from_pretrained(source.folder, num_hidden_layers=layers, dtype=torch.float32)
        with new_folder(folder) as partial:
            model.save_pretrained(partial)
            source.tokenizer.save_pretrained(partial)
    return folder


def with_equal_minutes(
    base: TrainConfig, variants: list[Variant], data: Path, options: argparse.Namespace
) -> list[Variant]:
    """The variants with the steps that each takes in the given time, from a timed run of each connector.

    A learning rate schedule depends on the number of steps, so it must be known before training.
    """
    long = {"steps": MOST_STEPS, "eval_every": MOST_STEPS, "max_seconds": TIMED_SECONDS}
    timed = override(base, {**long, "max_new_tokens": 1})  # its answers do not matter
    connectors = [VARIANTS[name] for name in dict.fromkeys(connector_of(each) for each in variants)]
    trials = plan(timed, connectors, options.seeds[:1], options.out / "timed")
    found = run_trials(trials, data, options.out / "timed", train=vitsplit.train, processes=options.processes)
    if found.stopped_by is not None:
        raise SystemExit(f"stopped by {found.stopped_by}")
    seconds = {each.trial.variant.name: each.seconds / each.steps for each in found.outcomes}

    def lengths(variant: Variant) -> dict[str, int]:
        steps = int(60 * options.minutes / seconds[connector_of(variant)])
        return {"steps": steps, "eval_every": -(-steps // EVALUATIONS)}

    return [replace(each, settings={**each.settings, **lengths(each)}) for each in variants]


def connector_of(variant: Variant) -> str:
    """The variant that has the same cost, with the images of the questions."""
    return str(variant.settings.get("connector", "vitsplit"))


def blind_accuracy(data: Path) -> float:
    """The accuracy of the most frequent answer to each validation question's text: no blind model exceeds it."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for sample in open_samples(data, "val", VqaConfig()).samples:
        for turn, *_ in sample.conversations:
            answers[turn.question][turn.answer] += 1
    return sum(max(each.values()) for each in answers.values()) / sum(each.total() for each in answers.values())


def show(outcomes: tuple[Outcome, ...]) -> None:
    """One line a variant, then all figures as JSON."""
    figures: dict[str, dict[str, list[float]]] = {}
    for outcome in outcomes:
        found = figures.setdefault(outcome.trial.variant.title, {})
        measured = {**outcome.metrics, "steps": outcome.steps, "minutes": outcome.seconds / 60}
        for name in ("exact_match", "set_match", "answer_loss", "steps", "minutes"):
            found.setdefault(name, []).append(round(float(measured[name]), 4))
    for title, found in figures.items():
        matches = found["exact_match"]
        spread = f" +- {statistics.stdev(matches):.4f}" if len(matches) > 1 else ""
        print(f"{title:26} exact match {statistics.mean(matches):.4f}{spread}  loss {found['answer_loss']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
