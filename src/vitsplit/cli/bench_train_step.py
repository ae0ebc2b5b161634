"""``vitsplit bench train-step``: time and memory of training steps of several methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import tyro

from vitsplit.cli.bench_options import DEFAULT_RECIPE, BenchOptions, Methods, measure_and_show, own_settings, recipe_of
from vitsplit.cli.flags import FromArgv, MethodFlags
from vitsplit.cli.values import BatchSize, Count
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.train_config import TrainConfig

METHODS = ("vitsplit", "full-finetune")


def train_step(
    recipe: tyro.conf.Positional[str] = DEFAULT_RECIPE,
    /,
    *,
    methods: Methods = METHODS,
    batch_size: BatchSize = 2,
    steps: Count = 10,
    random_weights: bool = True,
    memory: bool = True,
    product: bool = True,
    options: BenchOptions = BenchOptions(),  # noqa: B008  (frozen)
    config: Annotated[TrainConfig, FromArgv(recipe_of)],
    own: Annotated[Mapping[str, Sequence[str]], MethodFlags(METHODS)],
    argv: Annotated[Sequence[str], FromArgv(list)],
) -> int:
    """Measure training steps of several methods, alternating between them in one process.

    Shows seconds with quartiles, parts of the step, peak memory, multiply-adds and trainable parameters, and the ratio
    of each method to ViT-Split next to the paper's. Steps are those of `vitsplit train`, on random images and with
    random weights, since speed does not depend on their values. All training settings are flags that apply to all
    methods.

    A method is a name of `vitsplit train --method`, optionally with `:linear` or `:upernet` for another decoder than
    its default; `vitsplit:cached` reads cached features from disk, as `vitsplit train --cache-features` does from the
    second epoch on.

    Examples:
        vitsplit bench train-step --methods vitsplit full-finetune vit-adapter vit-adapter:linear
        vitsplit bench train-step ade20k-base --methods vitsplit full-finetune --size 518 518 --precision bf16
        vitsplit bench train-step --methods vitsplit upernet --device cuda --batch-size 8 --compile --out bench/steps

    Args:
        recipe: The recipe; must precede the flags.
        methods: The methods to compare.
        batch_size: Batch size.
        steps: Measured rounds.
        random_weights: Use random weights.
        memory: Measure the peak memory of each method, in a new process.
        product: Also time a matrix product, as a reference.
        options: Options of both benchmarks.
        config: Configuration of the recipe.
        own: Flags that only other methods than that of the recipe have.
        argv: The arguments, as given.
    """
    if random_weights and config.backbone.weights is not None:
        raise ConfigError("--weights requires --no-random-weights.")

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
        config=override(config, {"random_weights": random_weights}),
        methods=methods,
        size=options.size or tuple(config.task.crop_size),
        batch_size=batch_size,
        num_classes=options.num_classes,
        steps=steps,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
        own=own_settings(config, own),
        memory=memory,
        product=product,
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
