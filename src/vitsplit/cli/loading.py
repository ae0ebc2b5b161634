"""The flags that say how bundles are loaded; `predict` and `evaluate` have them in common."""

from __future__ import annotations

import argparse
from typing import Any


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--weights``, ``--device`` and ``--precision``."""
    parser.add_argument("--weights", metavar="PATH", help="weights of the backbone, where they cannot be fetched")
    parser.add_argument("--device", help="where to compute; default: the first GPU, else the processor")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="default: fp32 if the run computed in it, else auto",
    )


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """The same as arguments of ``vitsplit.load``."""
    return {"weights": options.weights, "device": options.device, "precision": options.precision}
