"""``vitsplit bench predict``: predictions of several methods, and of several bundles on one backbone."""

from __future__ import annotations

from vitsplit.cli.bench_options import bench_parser, measure_and_show, read_words
from vitsplit.cli.values import positive, whole
from vitsplit.engine.override import override

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
    methods = ["vitsplit", "full-finetune", "vit-adapter", "vit-comer"]
    parser = bench_parser("predict", DESCRIPTION, methods=methods, batch_size=4)
    parser.add_argument("--bundles", type=whole(1, 64), nargs="+", default=[1, 2, 3, 4], metavar="N", help="1 2 3 4")
    parser.add_argument("--turns", type=positive, default=10, metavar="N", help="turns that count; 10")
    config, options = read_words(parser, argv)

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
        methods=tuple(options.methods),
        own=options.own,
        bundles=tuple(dict.fromkeys(options.bundles)),
        size=tuple(options.size or config.task.crop_size),
        batch_size=options.batch_size,
        num_classes=options.num_classes,
        turns=options.turns,
        warmup=options.warmup,
        device=str(choose_device(options.device)),
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
