"""One backbone pass for several bundles against as many separate models: time and memory, in one run.

    python benchmarks/shared_pass.py RUN_A RUN_B RUN_C --images FOLDER

Time: shared and separate take turns in one process, image by image, after a warm-up; medians. Memory: each way in a
fresh process that loads the models and predicts one image. The bound is what multiply-adds allow: the backbone once
instead of once per bundle.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import vitsplit
from vitsplit.data.images import read_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--memory-of", choices=["shared", "separate"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = sorted(path for path in options.images.iterdir() if path.suffix in (".jpg", ".png"))[: options.count]
    if options.memory_of:
        print(json.dumps(peak_memory_mb(options.memory_of, options.runs, files[0], options.precision)))
        return
    print(json.dumps(measure(options.runs, files, options.precision), indent=1))


def measure(runs: list[str], files: list[Path], precision: str) -> dict[str, float]:
    shared = vitsplit.load(*runs, precision=precision)
    separate = [vitsplit.load(run, precision=precision) for run in runs]
    seconds: dict[str, list[float]] = {"shared": [], "separate": [], "backbone": []}
    for index, file in enumerate([files[0], files[0], *files]):
        image_CHW = read_image(file)
        ways = {
            "shared": lambda image=image_CHW: shared.predict(image),
            "separate": lambda image=image_CHW: [model.predict(image) for model in separate],
        }
        for way in sorted(ways, reverse=bool(index % 2)):
            started = time.perf_counter()
            ways[way]()
            if index >= 2:
                seconds[way].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items() if values}


def peak_memory_mb(way: str, runs: list[str], file: Path, precision: str) -> float:
    models = (
        [vitsplit.load(*runs, precision=precision)]
        if way == "shared"
        else [vitsplit.load(run, precision=precision) for run in runs]
    )
    for model in models:
        model.predict(file)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
