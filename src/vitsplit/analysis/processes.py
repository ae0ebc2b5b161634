"""Commands and functions in processes of their own; the commands hear of signals from this process alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from vitsplit.engine.processes import StopRequest
from vitsplit.errors import TrainingError

POLL_SECONDS = 0.2
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command.

    Attributes:
        name: What to call it in an error.
        command: The words of the command line.
        errors: The file that takes what it says on standard error.
    """

    name: str
    command: Sequence[str]
    errors: Path


def run_jobs(jobs: Sequence[Job], processes: int, *, on_finished: Callable[[], object]) -> str | None:
    """Keeps so many processes at work until all jobs are done.

    A signal is passed on as SIGTERM, and so is the failure of one: no other is begun then, and those at work have time
    to end in order. Every process has its share of the cores, and one of the GPUs in turn.

    Args:
        jobs: The jobs, in the order in which they are begun.
        processes: How many at once.
        on_finished: Called after every job that succeeded.

    Returns:
        The signal that stopped it, None if it came to its end.

    Raises:
        TrainingError: A job failed; the message has its last words.
    """
    waiting, running = list(jobs), dict[subprocess.Popen[bytes], tuple[Job, int]]()
    failed: Job | None = None
    passed_on = False
    with StopRequest() as stop:
        while running or (waiting and stop.received is None and failed is None):
            while waiting and len(running) < processes and stop.received is None and failed is None:
                place = min(set(range(processes)) - {taken for _, taken in running.values()})
                job = waiting.pop(0)
                running[_start(job, place, processes)] = (job, place)
            if (stop.received is not None or failed is not None) and not passed_on:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                passed_on = True
            time.sleep(POLL_SECONDS)
            for process in [each for each in running if each.poll() is not None]:
                job, _ = running.pop(process)
                if process.returncode == 0:
                    on_finished()
                elif not passed_on and failed is None:
                    failed = job
    if failed is not None:
        raise TrainingError(
            f"The run {failed.name} failed: {_last_error_line(failed)} The other runs were stopped and can be resumed: "
            "fix the cause and run the same command again."
        )
    return stop.received


def _start(job: Job, place: int, processes: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    devices = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    with job.errors.open("wb") as errors:
        return subprocess.Popen(
            list(job.command), env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def _last_error_line(job: Job) -> str:
    lines = job.errors.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing.")


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """What a function returns (or raises) in a process that has done nothing else, as its peak memory asks for.

    Args:
        function: Of a module, not a nested one.
        arguments: What can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
