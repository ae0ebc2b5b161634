"""Time of a joint training step compared with separate training steps of the same heads.

    python benchmarks/joint_training.py --tasks segmentation depth
    python benchmarks/joint_training.py --tasks segmentation depth detection --data segmentation=A depth=B detection=C

Joint and separate steps are measured in turns in one process, after a warm-up; values are medians. Steps are those of
the training engine, including data loading and augmentation. Without --data the images are generated scenes, and the
weights are random unless --cached-weights is given: speed does not depend on them. The bound is the ratio of the
multiply-adds: the frozen pass once instead of once per head. Equal costs (labels, losses, the optimizer) are excluded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.measure import Spread, Stopwatch, run_interleaved
from vitsplit.engine.assemble import assemble
from vitsplit.engine.override import override
from vitsplit.engine.processes import make_accelerator
from vitsplit.engine.sampling import open_batches
from vitsplit.engine.trainer import Trainer
from vitsplit.recipes.starting_point import starting_heads
from vitsplit.sample import write_segmentation_set
from vitsplit.tasks import TASKS
from vitsplit.train_config import TrainConfig

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS.names()), default=["segmentation", "depth"])
    parser.add_argument("--data", nargs="+", metavar="TASK=FOLDER", default=[])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--backbone", default="dinov2-small")
    parser.add_argument("--cached-weights", action="store_true", help="the backbone's own weights, not random ones")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    settings = {
        "backbone": options.backbone,
        "random_weights": not options.cached_weights,
        "batch_size": options.batch_size,
        "steps": WARM_UP + options.steps,
        "workers": 0,
        "precision": options.precision,
    }
    config = override(starting_heads({task: task for task in options.tasks}), settings)
    with tempfile.TemporaryDirectory() as folder:
        given = dict(each.split("=", 1) for each in options.data)
        data = {name: Path(given[name]) for name in options.tasks} if given else generate(options.tasks, Path(folder))
        print(json.dumps(measure(config, data), indent=1))


def generate(tasks: list[str], folder: Path) -> dict[str, Path]:
    """One set of scenes with labels for all tasks."""
    scenes = write_segmentation_set(folder / "scenes", 32, 2)
    return dict.fromkeys(tasks, scenes)


def measure(config: TrainConfig, data: Mapping[str, Path]) -> dict[str, object]:
    """Medians and ranges of seconds per step, their ratio, and the ratio that multiply-adds give."""
    accelerator = make_accelerator()
    ways = {"joint": config} | {name: replace(config, heads={name: head}) for name, head in config.heads.items()}
    steps, trained_gmacs, frozen_gmacs = {}, [], []
    for way, each in ways.items():
        steps[way], num_classes = prepare(each, {name: data[name] for name in each.heads}, accelerator)
        for name, classes in num_classes.items() if way != "joint" else ():
            gmacs = step_gmacs(config.for_head(name), config.geometry.crop_size, num_classes=classes)
            trained_gmacs.append(3 * gmacs["trained"])
            frozen_gmacs.append(gmacs["frozen"])
    watch = Stopwatch(accelerator.device)
    functions = {way: partial(watch.time, step) for way, step in steps.items()}
    seconds = run_interleaved(functions, turns=config.loop.steps - WARM_UP, warmup=WARM_UP)
    medians = {way: Spread.of(values).median for way, values in seconds.items()}
    separate = sum(medians[name] for name in config.heads)
    return {
        "threads": torch.get_num_threads(),
        "precision": config.loop.precision,
        "batch_size": config.loop.batch_size,
        "crop_size": config.geometry.crop_size,
        "seconds_per_step": medians,
        "spread": {way: [min(values), max(values)] for way, values in seconds.items()},
        "separate_seconds": separate,
        "joint_share_of_separate": medians["joint"] / separate,
        "bound_from_multiply_adds": (max(frozen_gmacs) + sum(trained_gmacs)) / (sum(frozen_gmacs) + sum(trained_gmacs)),
    }


def prepare(
    config: TrainConfig, data: Mapping[str, Path], accelerator: Accelerator
) -> tuple[Callable[[], object], dict[str, int]]:
    """A function that takes the next step of a run, and the number of classes of its tasks."""
    backbone, tasks, model, _ = assemble(config, data)
    trainer = Trainer(config, tasks=tasks, backbone=backbone, model=model)
    trainer.set_up(accelerator)
    batches = open_batches(config.loop, trainer.tasks, trainer.tasks.train_data(), accelerator, start=0)
    num_classes = {name: len(each.get("classes", ())) for name, each in trainer.tasks.describe().items()}
    indices = itertools.count()
    return lambda: trainer.step(next(indices), batches).read(), num_classes


if __name__ == "__main__":
    main()
