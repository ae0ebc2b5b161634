"""Runs commands and functions in subprocesses; signals reach commands only through this process."""

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
from vitsplit.memory import available_cores

POLL_SECONDS = 0.2
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command.

    Attributes:
        name: Name for error messages.
        command: The arguments of the command line.
        errors: File for standard error.
    """

    name: str
    command: Sequence[str]
    errors: Path


def run_jobs(jobs: Sequence[Job], processes: int, *, on_finished: Callable[[], object]) -> str | None:
    """Runs jobs in a number of parallel processes.

    On a signal or the failure of a job, no further jobs are started, and running ones receive SIGTERM to shut down
    cleanly. Cores are divided among processes, and GPUs are assigned in turn.

    Args:
        jobs: The jobs, in the order of execution.
        processes: Number of parallel processes.
        on_finished: Called after each successful job.

    Returns:
        The signal that stopped it; None if all jobs finished.

    Raises:
        TrainingError: A job failed; the message has its last line of standard error.
    """
    waiting, running = list(jobs), dict[subprocess.Popen[bytes], tuple[Job, int]]()
    failed: Job | None = None
    terminated = False
    with StopRequest() as stop:
        while running or (waiting and stop.received is None and failed is None):
            while waiting and len(running) < processes and stop.received is None and failed is None:
                place = min(set(range(processes)) - {used for _, used in running.values()})
                job = waiting.pop(0)
                running[_start(job, place, processes)] = (job, place)
            if (stop.received is not None or failed is not None) and not terminated:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                terminated = True
            time.sleep(POLL_SECONDS)
            for process in [each for each in running if each.poll() is not None]:
                job, _ = running.pop(process)
                if process.returncode == 0:
                    on_finished()
                elif not terminated and failed is None:
                    failed = job
    if failed is not None:
        raise TrainingError(
            f"The run {failed.name} failed: {_last_error_line(failed)} The other runs were stopped and can be resumed: "
            "fix the cause and run the same command again."
        )
    return stop.received


def _start(job: Job, place: int, processes: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    devices = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    with job.errors.open("wb") as errors:
        return subprocess.Popen(
            list(job.command), env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )


def _last_error_line(job: Job) -> str:
    lines = job.errors.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no error output.")


def in_new_process(function: Callable[..., T], *arguments: object) -> T:
    """Runs a function in a new process, for example to measure its peak memory; returns its result.

    Args:
        function: A module-level function.
        arguments: Picklable arguments.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
