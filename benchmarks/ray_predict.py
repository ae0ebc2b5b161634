"""``vitsplit predict --engine ray`` against the folder predictor, and killed with SIGKILL at random times.

    python benchmarks/ray_predict.py RUN [RUN ...] --images 5000 --actors 2 --kills 3 --turns 3

Generates small JPEG images, and predicts them in turns with the folder predictor (files per image, with overlays) and
with Ray (Parquet). Both are whole commands. Printed are images per second of the command, including the time to start
(Python, Ray, the model), and from the first written file on. Then Ray's command is killed while it runs: each time,
one of its processes, an actor or the driver, at a random number of finished images; it is repeated if the driver was
killed. The rows must be those of the images, each once, with the masks of the files of the folder predictor.

Runs on Linux, whose /proc has the processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vitsplit.analysis.measure import Spread, paired_ratio
from vitsplit.inference.prediction_log import LOG

POLL_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3, help="0: only measure")
    parser.add_argument("--turns", type=int, default=1, help="0: only kill, without comparing masks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-per-file", type=int, help="images per Parquet file (default: that of the command)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    photos = root / "photos"
    write_images(photos, options.images, tuple(options.size))
    predict = [sys.executable, "-m", "vitsplit", "predict", *options.runs, str(photos), "--device", "cpu"]
    with_ray = [*predict, "--engine", "ray", "--num-actors", str(options.actors)]
    if options.rows_per_file is not None:
        with_ray += ["--rows-per-file", str(options.rows_per_file)]
    rates: dict[str, list[dict[str, float]]] = {"folder": [], "ray": []}
    for _ in range(options.turns):
        for name, command, count in (("folder", predict, count_lines), ("ray", with_ray, count_rows)):
            shutil.rmtree(root / name, ignore_errors=True)
            rates[name].append(rate([*command, "--out", str(root / name)], root / name, count, options.images))
    facts: dict[str, Any] = {"images": options.images, "size": options.size, "actors": options.actors}
    for kind in ("whole", "running") if options.turns else ():
        of = {name: [each[kind] for each in several] for name, several in rates.items()}
        facts[kind] = {name: Spread.of(values).median for name, values in of.items()}
        facts[kind]["ratio"] = paired_ratio(of["ray"], of["folder"]).median
    if options.turns:
        facts["megabytes"] = {name: round(used_bytes(root / name) / 1e6, 3) for name in rates}
    if options.kills:
        facts["kills"] = kill([*with_ray, "--out", str(root / "killed")], root, options)
    return facts


def write_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Smooth random images with some noise, as JPEG."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(pixels.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize(size[::-1], Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + pixels.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:06}.jpg", quality=90)


def rate(command: list[str], out: Path, count: Callable[[Path], int], images: int) -> dict[str, float]:
    """Images per second of a command, as a whole and from its first written images on."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    first, first_count, end = start, 0, start
    finished = 0
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        now = count(out)
        if now > finished:
            finished, end = now, time.perf_counter()
            if first_count == 0:
                first, first_count = end, now
    if process.returncode != 0 or count(out) != images:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}, {count(out)} of {images} images")
    running = (finished - first_count) / (end - first) if end > first else float("nan")
    return {"whole": images / (time.perf_counter() - start), "running": running}


def count_lines(out: Path) -> int:
    """Finished images of the folder predictor."""
    file = out / LOG
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def count_rows(out: Path) -> int:
    """Rows in a folder of Parquet files."""
    return sum(pq.read_metadata(part).num_rows for part in out.glob("part-*.parquet"))


def kill(command: list[str], root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Kills processes of the command while it runs, repeats it until it ends by itself, and counts its rows."""
    out, chosen = root / "killed", random.Random(options.seed)
    at = sorted(chosen.randrange(1, max(2, options.images - 1)) for _ in range(options.kills))
    killed: list[str] = []
    starts, status = 0, -1
    while status != 0:
        starts += 1
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if len(killed) < len(at) and count_rows(out) >= at[len(killed)]:
                killed += kill_one(process.pid, chosen.choice(["actor", "driver"]))
        status = process.returncode
        if starts > options.kills + 1:
            raise SystemExit(f"the command failed without being killed (exit status {status})")
    rows = Counter(name for part in out.glob("part-*.parquet") for name in pq.read_table(part)["id"].to_pylist())
    expected = {path.name for path in (root / "photos").iterdir()}
    return {
        "killed": killed,
        "at_images": at,
        "starts": starts,
        "lost": len(expected - rows.keys()),
        "doubled": sum(count > 1 for count in rows.values()),
        "other": len(rows.keys() - expected),
        "errors": sum(pq.read_table(part)["error"].null_count != count_rows_of(part) for part in out.glob("part-*")),
        "different_masks": different_masks(out, root / "folder") if options.turns else None,
    }


def count_rows_of(part: Path) -> int:
    return pq.read_metadata(part).num_rows


def kill_one(driver: int, kind: str) -> list[str]:
    """Kills the driver, or an actor if there is one yet; returns the kind if a process was killed."""
    actors = [pid for pid, name in descendants(driver).items() if "MapWorker" in name]
    if kind == "actor" and not actors:
        return []
    os.kill(driver if kind == "driver" else actors[0], signal.SIGKILL)
    return [kind]


def descendants(pid: int) -> dict[int, str]:
    """Command lines of the processes below a process."""
    parents, names = {}, {}
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                parents[int(each.name)] = int((each / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(each.name)] = (each / "cmdline").read_text()
            except OSError:  # it has ended
                continue
    found, new = set(), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return {child: names[child] for child in found if child in names}


def different_masks(table: Path, folder: Path) -> int:
    """The number of segmentation masks that are not those of the folder predictor's files; 0 without segmentation."""
    different = 0
    for part in table.glob("part-*.parquet"):
        for row in pq.read_table(part).to_pylist():
            for prediction in row.values():
                if isinstance(prediction, dict) and prediction.keys() == {"png"}:
                    file = next(folder.glob(f"{Path(row['id']).stem}*_mask.png"))
                    different += prediction["png"] != file.read_bytes()
    return different


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
