"""``vitsplit bench train-step``: training steps of several methods, side by side."""

from __future__ import annotations

import argparse

from vitsplit.cli.bench_options import bench_parser, measure_and_show, read_words
from vitsplit.cli.values import positive
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError

DESCRIPTION = """\
Measures training steps of several methods in one process, in turns: seconds with their quartiles, parts of the step,
peak memory, multiply-adds and trained parameters, and each method's ratio to ViT-Split beside the paper's. The step is
that of `vitsplit train`, on random images and random weights: speed does not depend on what they hold.

  vitsplit bench train-step --methods vitsplit full-finetune vit-adapter vit-adapter:linear
  vitsplit bench train-step ade20k-base --methods vitsplit full-finetune --size 518 518 --precision bf16 --steps 20
  vitsplit bench train-step --methods vitsplit upernet --device cuda --batch-size 8 --compile --out bench/steps

The recipe comes first; without one it is ade20k-small. A method is a name of `vitsplit train --method`,
with `:linear` or `:upernet` for another decoder than its own; `vitsplit:cached` finds the frozen backbone's features on
disk, as `vitsplit train --cache-features` does from the second epoch on. Every other setting of training is a flag
here too, and goes for all methods.
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    config, options = read_words(_parser(), argv)
    if options.random_weights and config.backbone.weights is not None:
        raise ConfigError("--weights are read with --no-random-weights only.")

    from vitsplit.analysis.bench.train_step import BenchPlan, measure
    from vitsplit.analysis.bench.train_step_report import (
        describe_setting,
        figures_table,
        parts_table,
        ratios_table,
        to_json,
        write_train_step,
    )
    from vitsplit.inference.loading import choose_device

    plan = BenchPlan(
        config=override(config, {"random_weights": options.random_weights}),
        methods=tuple(options.methods),
        own=options.own,
        size=tuple(options.size or config.task.crop_size),
        batch_size=options.batch_size,
        num_classes=options.num_classes,
        steps=options.steps,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
        memory=options.memory,
        product=options.product,
    )
    measure_and_show(
        lambda say: measure(plan, say=say),
        options,
        to_json=to_json,
        describe=describe_setting,
        tables=lambda result: (figures_table(result), parts_table(result), ratios_table(result)),
        write=write_train_step,
        command=["vitsplit", "bench", "train-step", *argv],
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = bench_parser("train-step", DESCRIPTION, methods=["vitsplit", "full-finetune"], batch_size=2)
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="turns that count; 10")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--random-weights", action=switch, default=True, help="yes")
    parser.add_argument("--memory", action=switch, default=True, help="each method in a new process; yes")
    parser.add_argument("--product", action=switch, default=True, help="measure a matrix product too; yes")
    return parser
