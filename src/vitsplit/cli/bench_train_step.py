"""``vitsplit bench train-step``: training steps of several methods, side by side."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from vitsplit.cli.options import config_from_cli
from vitsplit.cli.values import positive
from vitsplit.errors import ConfigError
from vitsplit.recipes import recipe
from vitsplit.training.override import override

DEFAULT_RECIPE = "ade20k-small"
DESCRIPTION = """\
Measures training steps of several methods in one process, in turns: seconds with their quartiles, parts of the step,
peak memory, multiply-adds and trained parameters, and each method's ratio to ViT-Split beside the paper's. The step is
that of `vitsplit train`, on random images and random weights: speed does not depend on what they hold.

  vitsplit bench train-step --methods vitsplit full-finetune vit-adapter vit-adapter:linear
  vitsplit bench train-step ade20k-base --methods vitsplit full-finetune --size 518 518 --precision bf16 --steps 20
  vitsplit bench train-step --methods vitsplit upernet --device cuda --batch-size 8 --compile --out bench/steps

The recipe comes first; without one it is ade20k-small. A method is a name of `vitsplit train --method`,
with `:linear` or `:upernet` for another decoder than its own. Every other setting of training is a flag here too, and
goes for all methods.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    named = bool(argv) and not argv[0].startswith("-")
    name = argv[0] if named else DEFAULT_RECIPE
    options, rest = _parser().parse_known_args(argv[named:])
    if options.help:
        _parser().print_help()
        print(f"\nsettings of {name}:\n")
        rest = [*rest, "--help"]
    config = config_from_cli(recipe(name), rest, prog=f"vitsplit bench train-step {name}")
    if options.random_weights and config.backbone.weights is not None:
        raise ConfigError("--weights are read with --no-random-weights only.")
    config = override(config, {"random_weights": options.random_weights})
    return _measure(config, options, argv)


def _measure(config: Any, options: argparse.Namespace, argv: list[str]) -> int:
    import torch
    from rich.console import Console

    from vitsplit.bench.train_step import BenchPlan, measure
    from vitsplit.bench.train_step_report import (
        describe_setting,
        figures_table,
        on_screen,
        parts_table,
        ratios_table,
        to_json,
        write_train_step,
    )
    from vitsplit.inference.predictor import choose_device

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    plan = BenchPlan(
        config=config,
        methods=tuple(options.methods),
        size=tuple(options.size or config.task.crop_size),
        batch_size=options.batch_size,
        num_classes=options.num_classes,
        steps=options.steps,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
        memory=options.memory,
        product=options.product,
    )
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = measure(plan, say=status.update)
    if options.json:
        print(json.dumps(to_json(result)))
    else:
        console = Console()
        console.print(describe_setting(result), soft_wrap=True, highlight=False)
        for rows in (figures_table(result), parts_table(result), ratios_table(result)):
            if len(rows) > 1:
                console.print(on_screen(rows))
    if options.out is not None:
        page = write_train_step(result, options.out, command=shlex.join(["vitsplit", "bench", "train-step", *argv]))
        progress.print(f"page: {page}", soft_wrap=True, highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitsplit bench train-step",
        usage="%(prog)s [RECIPE] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--methods", nargs="+", default=["vitsplit", "full-finetune"], metavar="NAME[:DECODER]")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="of the images; the recipe's crops")
    parser.add_argument("--batch-size", type=positive, default=2, metavar="N", help="images per step; 2")
    parser.add_argument("--num-classes", type=positive, metavar="N", help="as many as the recipe's data has")
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="turns that count; 10")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="turns before them; 2")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; the first GPU, else the processor")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the processor; as PyTorch chooses")
    parser.add_argument("--random-weights", action=argparse.BooleanOptionalAction, default=True, help="yes")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="each method in a new process; yes"
    )
    parser.add_argument(
        "--product", action=argparse.BooleanOptionalAction, default=True, help="measure a matrix product too; yes"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write JSON, a picture and a page there")
    parser.add_argument("-h", "--help", action="store_true", help="this text, and all settings of training")
    return parser
