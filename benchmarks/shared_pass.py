"""Time and memory of a shared backbone pass for several bundles, compared with separate models.

    python benchmarks/shared_pass.py RUN_A RUN_B RUN_C --images FOLDER
    python benchmarks/shared_pass.py EXPORT_ABC --separate EXPORT_A EXPORT_B EXPORT_C --images FOLDER

Time: shared and separate predictions alternate in one process, after a warm-up; medians. Memory: the peak of a new
process that loads the models in one way and predicts one image. The bound is the ratio of multiply-adds: one pass of
the backbone instead of one per bundle.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vitsplit
from vitsplit.analysis.measure import Spread, Stopwatch, run_interleaved
from vitsplit.analysis.processes import in_new_process
from vitsplit.analysis.sharing import SharedBundle, compare_sharing
from vitsplit.data.decoding import IMAGE_SUFFIXES
from vitsplit.data.images import read_image
from vitsplit.memory import peak_resident_bytes
from vitsplit.runtime.card import is_export

WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs, or an exported folder with all heads")
    parser.add_argument("--separate", nargs="+", help="exported folders with one head each; default: the runs")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--precision", default="fp32", help="of runs")
    parser.add_argument("--runtime", help="of exported folders")
    options = parser.parse_args()
    ways = {"shared": [options.runs], "separate": [[run] for run in options.separate or options.runs]}
    files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[: options.count]
    exported = is_export(options.runs[0])
    how = {"runtime": options.runtime} if exported else {"precision": options.precision}
    facts = {
        "images": len(files),
        **how,
        **measure_seconds(ways, files, how),
    }
    facts["peak_memory_mb"] = {
        way: in_new_process(peak_memory_mb, models, files[0], how) for way, models in ways.items()
    }
    print(json.dumps(facts, indent=1))


def load(models: list[list[str]], how: dict[str, Any]) -> list[vitsplit.Predictor]:
    return [vitsplit.load(*sources, **how) for sources in models]


def measure_seconds(ways: dict[str, list[list[str]]], files: list[Path], how: dict[str, Any]) -> dict[str, object]:
    models = {way: load(sources, how) for way, sources in ways.items()}
    images = [read_image(file) for file in files]
    functions = {way: predictions(models[way], [*images[:1] * WARM_UP, *images]) for way in ways}
    seconds = run_interleaved(functions, turns=len(images), warmup=WARM_UP)
    shared = models["shared"][0]
    sharers = {name: SharedBundle(bundle.card.config, bundle.card.description) for name, bundle in shared.items()}
    arithmetic = compare_sharing(sharers, (images[-1].shape[-2], images[-1].shape[-1]))
    medians = {way: Spread.of(values).median for way, values in seconds.items()}
    return {
        "passes": shared.describe_passes(),
        "seconds": medians,
        "spread": {way: [min(values), max(values)] for way, values in seconds.items()},
        "speed_up": medians["separate"] / medians["shared"],
        "bound": arithmetic["time_bound"],
        "gmacs": arithmetic["gmacs"],
    }


def predictions(models: list[Any], images: list[Tensor]) -> Callable[[], float]:
    """Predicts the next image whenever it is called; returns the seconds."""
    pending, watch = iter(images), Stopwatch(torch.device("cpu"))  # a prediction ends on the CPU

    def predict() -> None:
        image_CHW = next(pending)
        for model in models:
            model.predict(image_CHW)

    return lambda: watch.time(predict)


def peak_memory_mb(models: list[list[str]], file: Path, how: dict[str, Any]) -> float:
    for model in load(models, how):
        model.predict(file)
    return peak_resident_bytes() / 2**20


if __name__ == "__main__":
    main()
