"""Expected calibration error of a bundle before and after temperature scaling, on halves of a validation set.

The temperature is fitted on one half of the images and judged on the other, in four ways: even and odd positions (the
package's) and first and last half, each in both directions.

    python benchmarks/calibration.py runs/rooms --data my_data
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import vitsplit
from vitsplit.engine.evaluation import evaluate
from vitsplit.tasks import open_task
from vitsplit.tasks.segmentation.calibration import PixelScores, measure_calibration


@dataclass
class Options:
    """Settings of the measurement."""

    run: tyro.conf.Positional[Path]
    """A run or bundle of segmentation."""
    data: Path
    """The data set; its split val is used."""


def scores(options: Options) -> list[PixelScores]:
    """Labeled pixels of the validation images, in their order."""
    (head,) = vitsplit.load(options.run).values()
    task: Any = open_task(head.card.config.task, options.data, ("val",))
    metric = task.metric()
    task.metric = lambda: metric
    found = evaluate(task, head.forward)
    print(f"{len(task.val_images())} images, mIoU {found.score:.4f}, {found.metrics['calibration']}")
    return [metric.pixels[place] for place in range(len(task.val_images()))]


def main(options: Options) -> None:
    images = scores(options)
    half = len(images) // 2
    halves = {
        "even, odd": (images[::2], images[1::2]),
        "odd, even": (images[1::2], images[::2]),
        "first, last": (images[:half], images[half:]),
        "last, first": (images[half:], images[:half]),
    }
    results = {}
    for name, (fitted, judged) in halves.items():
        pairs = enumerate(zip(fitted, judged, strict=False))
        found = {2 * place + side: each for place, pair in pairs for side, each in enumerate(pair)}
        results[name] = measure_calibration(found, None)
        values = results[name]
        print(
            f"{name:<12} temperature {values['temperature']:.3f}   ECE {100 * values['ece_before']:.2f} % -> "
            f"{100 * values['ece']:.2f} %   ({values['ece_before'] / values['ece']:.1f} times lower)"
        )
    print(json.dumps(results))


if __name__ == "__main__":
    main(tyro.cli(Options))
