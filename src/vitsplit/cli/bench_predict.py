"""``vitsplit bench predict``: predictions of several methods, and of several bundles on one backbone."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from vitsplit.cli.bench_train_step import DEFAULT_RECIPE
from vitsplit.cli.options import config_from_cli
from vitsplit.cli.values import positive
from vitsplit.recipes import recipe
from vitsplit.training.override import override

DESCRIPTION = """\
Measures predictions of several methods in one process, in turns: seconds for one image, images per second in batches,
multiply-adds, and each method's ratio to ViT-Split beside the paper's (Appendix C). Then one to four bundles that share
a pass of the backbone, against as many models with a pass each. Weights and images are random: speed does not depend on
what they hold.

  vitsplit bench predict --methods vitsplit full-finetune vit-adapter vit-comer
  vitsplit bench predict laptop-segmentation --num-classes 39 --bundles 1 2 3 4 --out bench/predict

The recipe comes first; without one it is ade20k-small. A method is a name of `vitsplit train --method`, with `:linear`
or `:upernet` for another decoder than its own.
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
    config = config_from_cli(recipe(name), rest, prog=f"vitsplit bench predict {name}")
    return _measure(override(config, {"random_weights": True}), options, argv)


def _measure(config: Any, options: argparse.Namespace, argv: list[str]) -> int:
    import torch
    from rich.console import Console

    from vitsplit.bench.predict import PredictPlan, measure_predictions
    from vitsplit.bench.predict_report import (
        describe_setting,
        methods_table,
        sharing_table,
        to_json,
        write_predictions,
    )
    from vitsplit.bench.train_step_report import on_screen
    from vitsplit.inference.predictor import choose_device

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    plan = PredictPlan(
        config=config,
        methods=tuple(options.methods),
        bundles=tuple(dict.fromkeys(options.bundles)),
        size=tuple(options.size or config.task.crop_size),
        batch_size=options.batch_size,
        num_classes=options.num_classes,
        turns=options.turns,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
    )
    progress = Console(stderr=True)
    with progress.status("starting") as status:
        result = measure_predictions(plan, say=status.update)
    if options.json:
        print(json.dumps(to_json(result)))
    else:
        console = Console()
        console.print(describe_setting(result), soft_wrap=True, highlight=False)
        console.print(on_screen(methods_table(result)))
        console.print(on_screen(sharing_table(result)))
    if options.out is not None:
        page = write_predictions(result, options.out, command=shlex.join(["vitsplit", "bench", "predict", *argv]))
        progress.print(f"page: {page}", soft_wrap=True, highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitsplit bench predict",
        usage="%(prog)s [RECIPE] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    methods = ["vitsplit", "full-finetune", "vit-adapter", "vit-comer"]
    parser.add_argument("--methods", nargs="+", default=methods, metavar="NAME[:DECODER]")
    parser.add_argument("--bundles", type=positive, nargs="+", default=[1, 2, 3, 4], metavar="N", help="1 2 3 4")
    parser.add_argument("--size", type=positive, nargs=2, metavar=("H", "W"), help="of the images; the recipe's crops")
    parser.add_argument("--batch-size", type=positive, default=4, metavar="N", help="images at a time; 4")
    parser.add_argument("--num-classes", type=positive, metavar="N", help="as many as the recipe's data has")
    parser.add_argument("--turns", type=positive, default=10, metavar="N", help="turns that count; 10")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="turns before them; 2")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; the first GPU, else the processor")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the processor; as PyTorch chooses")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write JSON, a picture and a page there")
    parser.add_argument("-h", "--help", action="store_true", help="this text, and all settings of training")
    return parser
