"""``vitsplit bench predict``: predictions of several methods, and of several bundles on one backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import tyro
from pydantic import Field

from vitsplit.cli.bench_options import DEFAULT_RECIPE, BenchOptions, Methods, measure_and_show, own_settings, recipe_of
from vitsplit.cli.flags import FromWords, OfMethods
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
    config: Annotated[TrainConfig, FromWords(recipe_of)],
    own: Annotated[Mapping[str, Sequence[str]], OfMethods(METHODS)],
    words: Annotated[Sequence[str], FromWords(list)],
) -> int:
    """Measure predictions of several methods in one process, in turns.

    Shows seconds for one image, images per second in batches, multiply-adds, and each method's ratio to ViT-Split
    beside the paper's (Appendix C). Then one to four bundles that share a pass of the backbone, against as many models
    with a pass each. Weights and images are random: speed does not depend on their values.

    A method is a name of `vitsplit train --method`, with `:linear` or `:upernet` for another decoder than its own.

    Examples:
        vitsplit bench predict --methods vitsplit full-finetune vit-adapter vit-comer
        vitsplit bench predict laptop-segmentation --num-classes 39 --bundles 1 2 3 4 --out bench/predict

    Args:
        recipe: The recipe, before all flags.
        methods: What is compared.
        bundles: How many bundles share a backbone.
        batch_size: Images at a time.
        turns: Turns that count.
        options: Options of both benchmarks.
        config: Settings of the recipe.
        own: Flags of methods other than the recipe's.
        words: The words of the command.
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
        command=["vitsplit", "bench", "predict", *words],
    )
    return 0
