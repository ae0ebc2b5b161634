"""``vitsplit bench predict``: prediction time of several methods, and of several bundles on one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import tyro
from pydantic import Field

from vitsplit.cli.bench_options import DEFAULT_RECIPE, BenchOptions, Methods, measure_and_show, own_settings, recipe_of
from vitsplit.cli.flags import FromArgv, MethodFlags
from vitsplit.cli.values import BatchSize, Count
from vitsplit.engine.override import override
from vitsplit.train_config import TrainConfig

METHODS = ("vitsplit", "full-finetune", "vit-adapter", "vit-comer")


def predict(
    recipe: tyro.conf.Positional[str] = DEFAULT_RECIPE,
    /,
    *,
    methods: Methods = METHODS,
    bundles: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1)] = (1, 2, 3, 4),
    batch_size: BatchSize = 4,
    turns: Count = 10,
    options: BenchOptions = BenchOptions(),  # noqa: B008  (frozen)
    config: Annotated[TrainConfig, FromArgv(recipe_of)],
    own: Annotated[Mapping[str, Sequence[str]], MethodFlags(METHODS)],
    argv: Annotated[Sequence[str], FromArgv(list)],
) -> int:
    """Measure the prediction time of several methods, alternating between them in one process.

    Shows the latency of one image, the throughput in batches, multiply-adds, and the ratio of each method to ViT-Split
    next to the paper's (Appendix C). Also compares several bundles that share a backbone pass with as many separate
    models. Weights and images are random, since speed does not depend on their values.

    A method is a name of `vitsplit train --method`, optionally with `:linear` or `:upernet` for another decoder than
    its default.

    Examples:
        vitsplit bench predict --methods vitsplit full-finetune vit-adapter vit-comer
        vitsplit bench predict laptop-segmentation --num-classes 39 --bundles 1 2 3 4 --out bench/predict

    Args:
        recipe: The recipe; must precede the flags.
        methods: The methods to compare.
        bundles: Numbers of bundles on one backbone.
        batch_size: Batch size.
        turns: Measured rounds.
        options: Options of both benchmarks.
        config: Configuration of the recipe.
        own: Flags that only other methods than that of the recipe have.
        argv: The arguments, as given.
    """
    from vitsplit.analysis.bench.predict import PredictPlan, measure_predictions
    from vitsplit.analysis.bench.predict_report import (
        describe_setting,
        methods_table,
        sharing_table,
        to_json,
        write_predictions,
    )
    from vitsplit.inference.loading import choose_device

    plan = PredictPlan(
        config=override(config, {"random_weights": True}),
        methods=methods,
        bundles=tuple(dict.fromkeys(bundles)),
        size=options.size or tuple(config.task.crop_size),
        batch_size=batch_size,
        num_classes=options.num_classes,
        turns=turns,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
        own=own_settings(config, own),
    )
    measure_and_show(
        lambda say: measure_predictions(plan, say=say),
        options,
        to_json=to_json,
        describe=describe_setting,
        tables=lambda result: (methods_table(result), sharing_table(result)),
        write=write_predictions,
        command=["vitsplit", "bench", "predict", *argv],
    )
    return 0
