"""``vitsplit bench``: how fast things are on this machine, measured side by side."""

from __future__ import annotations

import importlib
import sys

# verb -> (module, one line of help)
VERBS = {
    "train-step": ("vitsplit.cli.bench_train_step", "time, memory and multiply-adds of a training step, by method"),
    "predict": ("vitsplit.cli.bench_predict", "time of a prediction, by method and by bundles that share a backbone"),
    "accuracy": ("vitsplit.cli.bench_accuracy", "methods on your data, with equal steps or equal seconds"),
}


def usage() -> str:
    """The text of ``vitsplit bench --help``."""
    rows = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return (
        "usage: vitsplit bench VERB [options]\n\n"
        "Measure on this machine what the paper claims.\n\n"
        f"verbs:\n{rows}\n\n"
        "After a verb, --help lists its options.\n"
    )


def main(argv: list[str]) -> int:
    """Runs ``vitsplit bench VERB`` and returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        print(f"error: there is no verb 'bench {verb}'. Verbs: {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    return int(importlib.import_module(VERBS[verb][0]).main(rest))
