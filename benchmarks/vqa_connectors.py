"""Compares connectors with the same questions, budget and language model, over several seeds.

    python benchmarks/vqa_connectors.py --data nyuv2 --out runs/connectors --processes 2

Connector and language model are tuned together from the start: one that had first learned to answer without seeing did
not begin to look (docs/benchmarks.md). One more run is shown other images than the questions are on: what it reaches is
reached without seeing. Finished runs are not trained again, and interrupted runs are resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import vitsplit
from vitsplit.analysis.runs import Outcome, Trial, Variant, plan, run_trials
from vitsplit.engine.override import override
from vitsplit.recipes.starting_point import starting_config

COMMON = {
    "backbone": "dinov2-small-focus",
    "visual_grid": (4, 4),
    "system_prompt": "",
    "tune": "full",
    "lr": 3e-4,
    "cache_features": 1,
}


def main() -> None:
    """Trains what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of questions and images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of every run (default: 300)")
    parser.add_argument("--eval-every", type=int, help="steps between two evaluations (default: one at the end)")
    parser.add_argument("--batch-size", type=int, default=4, help="images of a step (default: 4)")
    parser.add_argument("--processes", type=int, default=1, help="runs at once (default: 1)")
    options = parser.parse_args()

    eval_every = options.eval_every or options.steps
    budget = {"steps": options.steps, "eval_every": eval_every, "batch_size": options.batch_size}
    trials = plan_trials({**COMMON, **budget}, options.seeds, options.out)
    result = run_trials(trials, options.data, options.out, train=vitsplit.train, processes=options.processes)
    show(result.outcomes)


def plan_trials(settings: dict[str, object], seeds: list[int], out: Path) -> list[Trial]:
    """All connectors with all seeds; with the first seed also without seeing."""
    base = override(starting_config("vqa"), settings)
    connectors = [
        Variant(name="vitsplit", settings={"connector": "vitsplit"}, title="ViT-Split"),
        Variant(name="mlp2x", settings={"connector": "mlp2x"}, title="two layers (LLaVA-1.5)"),
    ]
    shuffled = Variant(name="shuffled", settings={"shuffle_images": True}, title="ViT-Split, other images")
    trials = plan(base, [connectors[0], shuffled, connectors[1]], seeds[:1], out)
    return trials + (plan(base, connectors, seeds[1:], out) if len(seeds) > 1 else [])


def show(outcomes: tuple[Outcome, ...]) -> None:
    """One line a variant, then all figures as JSON."""
    figures: dict[str, dict[str, list[float]]] = {}
    for outcome in outcomes:
        found = figures.setdefault(outcome.trial.variant.title, {})
        for name in ("exact_match", "set_match", "answer_loss"):
            found.setdefault(name, []).append(round(float(outcome.metrics[name]), 4))
    for title, found in figures.items():
        matches = found["exact_match"]
        spread = f" +- {statistics.stdev(matches):.4f}" if len(matches) > 1 else ""
        print(f"{title:26} exact match {statistics.mean(matches):.4f}{spread}  loss {found['answer_loss']}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
