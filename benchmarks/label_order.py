"""Are labels saved by `vitsplit rank`? Training sets that grow in its order and in random order, from the same images.

For each seed, a head is trained on the first images, chosen at random. The next ones are those that it ranks first
(given the labeled ones), or random ones; a new head is trained on all of them, with the same number of steps.

    python benchmarks/label_order.py --data nyuv2 --out runs/label_order --seeds 0 1 2

The same command resumes after a stop: finished runs are kept, and a run that was stopped is resumed.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import vitsplit
from vitsplit.analysis.ranking import greedy_order, measure
from vitsplit.atomic_files import write_json
from vitsplit.data.new_folder import new_folder
from vitsplit.inference.predictor import load_head

ORDERS = ("rank", "random")


@dataclass
class Options:
    """Settings of the measurement."""

    data: Path
    """A data set of segmentation in folders, with the splits train and val."""
    out: Path
    """Folder of the training sets, the runs and the result."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the first images, of random order and of the runs."""
    sizes: tuple[int, ...] = (40, 80, 160)
    """Numbers of labeled images."""
    pool: int = 0
    """Number of training images to choose from; 0: all."""
    steps: int = 200
    """Training steps of every run."""
    backbone: str = "dinov2-small-focus"
    """The frozen model."""
    precision: str = "bf16"
    """Precision of the runs."""
    size: tuple[int, int] | None = None
    """Height and width of the images in training and prediction; None: those of the recipe."""


def write_subset(data: Path, names: list[str], to: Path) -> None:
    """A data set with these training images, as links, and all validation images."""
    with new_folder(to) as folder:
        (folder / "classes.json").write_bytes((data / "classes.json").read_bytes())
        for kind in ("images", "masks"):
            for split in ("train", "val"):
                (folder / kind / split).mkdir(parents=True)
                for file in sorted((data / kind / split).iterdir()):
                    if split == "val" or file.stem in names:
                        (folder / kind / split / file.name).symlink_to(file.resolve())


def train(options: Options, folder: Path, names: list[str], seed: int) -> dict[str, Any]:
    """Trains on these images, once; the metrics of the run."""
    result, run = folder / "result.json", folder / "run"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data").exists():
            write_subset(options.data, names, folder / "data")
        settings = {"backbone": options.backbone, "steps": options.steps, "eval_every": options.steps, "workers": 0}
        settings |= {"seed": seed, "precision": options.precision}
        if options.size is not None:
            settings |= {"crop_size": options.size, "image_scale": (max(options.size), min(options.size))}
        trained = vitsplit.train(
            data=folder / "data", recipe="laptop-segmentation", out=run, resume=run.exists(), **settings
        )
        if trained.stopped_by is not None:
            raise SystemExit(f"stopped by {trained.stopped_by}: repeat the command to resume.")
        write_json(result, {"images": names, "miou": trained.metrics["miou"], "metrics": dict(trained.metrics)})
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def ranked(run: Path, files: dict[str, Path], labeled: list[str], count: int) -> list[str]:
    """The next images in the order of `vitsplit rank --labeled`, once."""
    kept = run.parent / f"next-{count}.json"
    if not kept.exists():
        head = load_head(run)
        left = [name for name in files if name not in labeled]
        known = measure(head, [files[name] for name in labeled])
        order = greedy_order(measure(head, [files[name] for name in left]), count, known.feature_ND)
        write_json(kept, [left[each.index] for each in order])
    found: list[str] = json.loads(kept.read_text())
    return found


def grow(options: Options, seed: int, order: str) -> dict[int, float]:
    """mIoU by number of labeled images."""
    files = {path.stem: path for path in sorted((options.data / "images" / "train").iterdir())}
    shuffled = random.Random(seed).sample(sorted(files), options.pool or len(files))
    files = {name: files[name] for name in sorted(shuffled)}
    labeled, found = shuffled[: options.sizes[0]], {}
    for size, following in zip(options.sizes, [*options.sizes[1:], None], strict=True):
        # The first run is the same in every order.
        folder = options.out / f"seed-{seed}" / (f"{order}-{size}" if size > options.sizes[0] else f"first-{size}")
        found[size] = train(options, folder, labeled, seed)["miou"]
        print(f"seed {seed}, {order}, {size} images: mIoU {found[size]:.4f}", flush=True)
        if following is not None and order == "rank":
            labeled = labeled + ranked(folder / "run", files, labeled, following - size)
        elif following is not None:
            labeled = shuffled[:following]
    return found


def equal_labels(random_order: dict[int, float], miou: float) -> float | None:
    """The number of labels at which random order has this mIoU, between its points in the logarithm; None outside."""
    sizes, values = zip(*random_order.items(), strict=True)
    if not values[0] <= miou <= values[-1]:
        return None
    return math.exp(float(np.interp(miou, np.maximum.accumulate(values), [math.log(size) for size in sizes])))


def main(options: Options) -> None:
    results = {order: {seed: grow(options, seed, order) for seed in options.seeds} for order in ORDERS}
    means = {
        order: {size: float(np.mean([each[size] for each in by_seed.values()])) for size in options.sizes}
        for order, by_seed in results.items()
    }
    for size in options.sizes:
        gains = [results["rank"][seed][size] - results["random"][seed][size] for seed in options.seeds]
        print(
            f"{size:>4} images: mIoU {means['rank'][size]:.4f} ranked, {means['random'][size]:.4f} random; gains "
            + " ".join(f"{gain:+.4f}" for gain in gains)
        )
    for size in options.sizes[1:]:
        equal = equal_labels(means["random"], means["rank"][size])
        if equal is not None:
            print(
                f"{size} ranked images are worth {equal:.0f} random ones: {1 - size / equal:+.0%} of the labels saved"
            )
    write_json(options.out / "label_order.json", {"steps": options.steps, "miou": results})


if __name__ == "__main__":
    main(tyro.cli(Options))
