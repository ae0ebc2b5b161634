"""One backbone pass for several bundles against as many separate models: time and memory, in one run.

    python benchmarks/shared_pass.py RUN_A RUN_B RUN_C --images FOLDER

Time: shared and separate take turns in one process, image by image, after a warm-up; medians. Memory: peak of a fresh
process that loads the models in one way and predicts one image. The bound is what multiply-adds allow: one pass
of the backbone instead of one per bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import vitsplit
from vitsplit.analysis.sharing import Sharer, compare_sharing
from vitsplit.data.images import IMAGE_SUFFIXES, read_image

WAYS = ("shared", "separate")
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(path for path in options.images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)[: options.count]
    if options.memory_of:
        models = load(options.memory_of, options.runs, options.precision)
        for model in models:
            model.predict(files[0])
        print(own_peak_memory_mb())
        return
    facts = {
        "images": len(files),
        "precision": options.precision,
        **measure_seconds(options.runs, files, options.precision),
    }
    facts["peak_memory_mb"] = {way: peak_memory_mb(way) for way in WAYS}
    print(json.dumps(facts, indent=1))


def load(way: str, runs: list[str], precision: str) -> list[vitsplit.MultiPredictor | vitsplit.Predictor]:
    if way == "shared":
        return [vitsplit.load(*runs, precision=precision)]
    return [vitsplit.load(run, precision=precision) for run in runs]


def measure_seconds(runs: list[str], files: list[Path], precision: str) -> dict[str, object]:
    models = {way: load(way, runs, precision) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index, file in enumerate([*files[:1] * WARM_UP, *files]):
        image_CHW = read_image(file)
        for way in WAYS if index % 2 else WAYS[::-1]:
            started = time.perf_counter()
            for model in models[way]:
                model.predict(image_CHW)
            if index >= WARM_UP:
                seconds[way].append(time.perf_counter() - started)
    shared = models["shared"][0]
    sharers = {name: Sharer(bundle.card.config, bundle.card.description) for name, bundle in shared.items()}
    arithmetic = compare_sharing(sharers, (image_CHW.shape[-2], image_CHW.shape[-1]))
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    return {
        "passes": shared.describe_passes(),
        "seconds": medians,
        "spread": {way: [min(values), max(values)] for way, values in seconds.items()},
        "speed_up": medians["separate"] / medians["shared"],
        "bound": arithmetic["time_bound"],
        "gmacs": arithmetic["gmacs"],
    }


def own_peak_memory_mb() -> float:
    # Not getrusage: what it tells begins with the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def peak_memory_mb(way: str) -> float:
    command = [sys.executable, *sys.argv, "--memory-of", way]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
