"""Tests that killed runs resume without loss, and that two processes on one folder do not corrupt it.

    python benchmarks/kill_resume.py --kills 60 --pairs 20

A tiny run (random weights, generated scenes) is killed with SIGKILL: in half of the trials just before one of its
accesses to a file in its folder (evenly spaced over the run, and all accesses before ``config.json`` exists), in the
other half at a random time. It is then resumed with ``vitsplit train ... --resume``, or with the original command if
nothing was trained before the kill. Finally all tensors of the last checkpoint and of both bundles, and all rows of
``metrics.jsonl`` except times, must equal those of an uninterrupted run.

A pair is two processes with the same command, the second started while the first is running, both new or both
resuming. One must be rejected with the process ID of the other, and the other must give the result of a single process.

Processes are forked from one that has imported everything, so that a run takes a second or two.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vitsplit.atomic_files import write_json
from vitsplit.cli.main import main as run_vitsplit
from vitsplit.engine.override import override
from vitsplit.recipes import recipe
from vitsplit.sample import write_segmentation_set
from vitsplit.saved_config import config_to_dict

STEPS = 8
SETTINGS: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "random_weights": True,
    "num_tuned_layers": 1,
    "steps": STEPS,
    "batch_size": 2,
    "crop_size": (48, 64),
    "image_scale": None,
    "workers": 0,
    "precision": "fp32",
    "track": ("tensorboard",),
    "log_every": 1,
    "eval_every": 4,
    "checkpoint_every": 2,
    "ema": 0.9,
}
CLOCKS = {"seconds", "images_per_second", "peak_memory_gb"}
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Audit events of Python for accesses to files."""
FORK = multiprocessing.get_context("fork")


class Bench:
    """The data, the settings, and the uninterrupted run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = write_segmentation_set(root / "data", 6, 3, (48, 64), seed=1, workers=1)
        self.config = root / "settings.json"
        write_json(self.config, config_to_dict(override(recipe("laptop-segmentation"), SETTINGS)))
        self.uninterrupted = root / "uninterrupted"
        accesses = root / "accesses.json"
        began = time.perf_counter()
        status, output = self.run(
            self.uninterrupted, lambda: watch(self.uninterrupted, count_into(accesses, self.uninterrupted))
        )
        self.seconds = time.perf_counter() - began
        if status:
            sys.exit(f"The run that was to be compared with ended with status {status}: {output}")
        self.accesses, self.before_config = json.loads(accesses.read_text())

    def start(
        self, out: Path, prepare: Callable[[], None] = lambda: None, *, resume: bool = False
    ) -> tuple[BaseProcess, Path]:
        """Starts ``vitsplit train``; returns the process and the file of its output."""
        words = ["train", "segmentation", "--data", str(self.data), "--out", str(out)]
        words += ["--resume"] if resume else ["--config", str(self.config)]
        log_file = self.root / f"{out.name}-{time.monotonic_ns()}.txt"
        process = FORK.Process(target=child, args=(words, log_file, prepare))
        process.start()
        return process, log_file

    def run(self, out: Path, prepare: Callable[[], None] = lambda: None, *, resume: bool = False) -> tuple[int, str]:
        """Runs the command to its end; returns the exit status and the output."""
        process, log_file = self.start(out, prepare, resume=resume)
        return ended(process, log_file)

    def resume(self, out: Path) -> str:
        """Resumes a killed run; returns the command that worked, or the error."""
        way = "--resume"
        status, output = self.run(out, resume=True)
        if status == 2 and "without --resume" in output:
            way = "the command again"
            status, output = self.run(out)
        return way if status == 0 else f"status {status}: {output.strip()}"

    def differences(self, out: Path) -> list[str]:
        """The differences of a run from the uninterrupted run."""
        checkpoint = f"checkpoints/step-{STEPS:08d}"
        files = [f"{checkpoint}/{name}.safetensors" for name in ("weights", "optimizer", "ema")]
        files += [f"{bundle}/head.safetensors" for bundle in ("best", "last")]
        found = [file for file in files if not same_tensors(self.uninterrupted / file, out / file)]
        if rows(out) != rows(self.uninterrupted):
            found.append("metrics.jsonl")
        found += [str(path.relative_to(out)) for path in out.rglob(".*")]
        return found


def child(words: list[str], log_file: Path, prepare: Callable[[], None]) -> None:
    torch.set_num_threads(1)
    with log_file.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare()
    sys.exit(run_vitsplit(words))


def ended(process: BaseProcess, log_file: Path) -> tuple[int, str]:
    process.join()
    assert process.exitcode is not None
    return process.exitcode, log_file.read_text(errors="replace")


def watch(folder: Path, on_access: Callable[[], None]) -> None:
    """Calls a function before every access of this process to a file in a folder."""
    inside, above = str(folder), False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal above
        if event in EVENTS and not above and str(arguments[0]).startswith(inside):
            above = True
            on_access()
            above = False

    sys.addaudithook(hook)


def count_into(file: Path, folder: Path) -> Callable[[], None]:
    """Counts accesses: all, and those before the run had a configuration."""
    counted = [0, 0]

    def count() -> None:
        counted[0] += 1
        counted[1] += not (folder / "config.json").exists()
        file.write_text(json.dumps(counted))

    return count


def kill_at(access: int) -> Callable[[], None]:
    left = access

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def same_tensors(expected: Path, found: Path) -> bool:
    if not found.is_file():
        return False
    ours, theirs = load_file(expected), load_file(found)
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def measure_kills(bench: Bench, count: int, draw: random.Random) -> dict[str, Any]:
    targeted = list(range(1, bench.before_config + 1))[: count // 2]
    rest = count // 2 - len(targeted)
    span = bench.accesses - bench.before_config
    targeted += [bench.before_config + 1 + place * span // rest for place in range(rest)]
    plan: list[tuple[str, float]] = [("before an access", place) for place in targeted]
    plan += [("at a random time", draw.uniform(0, bench.seconds)) for _ in range(count - len(plan))]
    ways: Counter[str] = Counter()
    failed, early, identical = [], 0, 0
    for number, (kind, when) in enumerate(plan):
        out = bench.root / f"killed-{number}"
        if kind == "before an access":
            status, _ = bench.run(out, lambda when=when, out=out: watch(out, kill_at(int(when))))  # type: ignore[misc]
        else:
            status = 0
            while status == 0:  # the run ended before the kill
                shutil.rmtree(out, ignore_errors=True)
                process, log_file = bench.start(out)
                time.sleep(when)
                process.kill()
                status, _ = ended(process, log_file)
                when *= 0.8
        early += not (out / "config.json").exists()
        way = bench.resume(out) if out.exists() else ("the command again" if bench.run(out)[0] == 0 else "failed")
        ways[way] += 1
        differing = bench.differences(out)
        if differing:
            failed.append(f"killed {kind} ({when:g}): {way}: {', '.join(differing)}")
        identical += not differing
        shutil.rmtree(out)
        print(f"\r{number + 1} of {len(plan)} killed and resumed, {identical} identical", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {
        "kills": len(plan),
        "before config.json": early,
        "identical": identical,
        "resumed by": dict(ways),
        "failed": failed,
    }


def measure_pairs(bench: Bench, count: int, draw: random.Random) -> dict[str, Any]:
    unharmed, refused, failed = 0, 0, []
    for number in range(count):
        out = bench.root / f"pair-{number}"
        resume = number % 2 == 1
        if resume:
            bench.run(out, lambda out=out: watch(out, kill_at(bench.accesses // 2)))  # type: ignore[misc]
        processes = [bench.start(out, resume=resume)]
        time.sleep(draw.choice([0.0, draw.uniform(0, bench.seconds / 3)]))
        processes.append(bench.start(out, resume=resume))
        results = [ended(*each) for each in processes]
        pids = [process.pid for process, _ in processes]
        statuses = [status for status, _ in results]
        one_refused = sorted(statuses) == [0, 2]
        if one_refused:
            loser = statuses.index(2)
            one_refused = f"process {pids[1 - loser]} on " in results[loser][1]
        refused += one_refused
        differing = bench.differences(out)
        unharmed += not differing
        if differing or not one_refused:
            failed.append(f"{number}: {statuses} {results[1][1].strip()[-300:]}: {', '.join(differing)}")
        shutil.rmtree(out)
        print(f"\r{number + 1} of {count} pairs, {unharmed} unharmed, {refused} refused", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {"pairs": count, "unharmed": unharmed, "second refused by the first's number": refused, "failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Imported once here, so that forked processes need not import it.
    import accelerate  # noqa: F401
    import timm  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchvision.transforms.v2  # noqa: F401

    import vitsplit.api
    import vitsplit.tasks.segmentation.task  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        print(
            f"a run: {bench.seconds:.1f} s, {bench.accesses} accesses to files, {bench.before_config} of them before "
            "config.json",
            file=sys.stderr,
        )
        found: dict[str, Any] = {"seed": options.seed}
        if options.kills:
            found["kills"] = measure_kills(bench, options.kills, draw)
        if options.pairs:
            found["pairs"] = measure_pairs(bench, options.pairs, draw)
        print(json.dumps(found, indent=1))
        sys.exit(any(part["failed"] for part in found.values() if isinstance(part, dict)))


if __name__ == "__main__":
    main()
