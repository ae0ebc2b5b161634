"""The flags that say how bundles are loaded; `predict`, `evaluate` and `chat` have them in common."""

from __future__ import annotations

import argparse
from typing import Any


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--weights``, ``--language-weights``, ``--language-model``, ``--device`` and ``--precision``."""
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="weights of the backbone, where they cannot be fetched or the run was trained with --weights",
    )
    parser.add_argument(
        "--language-weights",
        metavar="PATH",
        help="folder of the language model, where the run was trained with --language-weights",
    )
    parser.add_argument(
        "--language-model",
        metavar="NAME",
        help="the language model's name, where it is not a known one and may be taken from the hub",
    )
    parser.add_argument("--device", help="where to compute; default: the first GPU, else the processor")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="default: fp32 if the run computed in it, else auto",
    )


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """The same as arguments of ``vitsplit.load``."""
    names = ("weights", "language_weights", "language_model", "device", "precision")
    return {name: getattr(options, name) for name in names}
