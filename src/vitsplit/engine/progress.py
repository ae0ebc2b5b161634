"""Progress display of a run: a live progress bar on a terminal, otherwise one line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vitsplit.memory import peak_resident_bytes

LINE_EVERY_SECONDS = 10.0


class ProgressView:
    """Step, loss, learning rate, images per second, time left and peak memory.

    Args:
        console: The console; None on all processes but the main one.
        steps: Total steps of the run.
        start: Completed steps.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self, console: Console | None, *, steps: int, start: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.steps = steps
        self.clock = clock
        self._last_line = -float("inf")
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._training = self._bar.add_task("training", total=steps, completed=start, text="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(
        self, step: int, *, loss: float, lr: float, images_per_second: float, seconds_left: float, memory_gb: float
    ) -> None:
        """Shows a completed step."""
        if self.console is None:
            return
        left = timedelta(seconds=round(seconds_left))
        pace = f"{images_per_second:.1f} images/s  left {left}"
        text = f"loss {loss:.4f}  lr {lr:.2e}  {pace}  peak memory {memory_gb:.1f} GB"
        if self._bar is not None:
            self._bar.update(self._training, completed=step, text=text)
        elif self.clock() - self._last_line >= LINE_EVERY_SECONDS or step == self.steps:
            self._last_line = self.clock()
            self.console.print(f"step {step}/{self.steps}  {text}", highlight=False, soft_wrap=True)

    def evaluating(self) -> Callable[[], None]:
        """Starts the evaluation's bar; returns a function to call after every image."""
        if self._bar is None:
            return lambda: None
        bar = self._bar
        task = bar.add_task("evaluating", total=None, text="images")
        return lambda: bar.advance(task)

    def evaluated(self) -> None:
        """Removes the evaluation's bar."""
        if self._bar is not None:
            for task in self._bar.task_ids:
                if task != self._training:
                    self._bar.remove_task(task)


class StepTimer:
    """Exponential moving average of the seconds per step, over about the last twenty steps."""

    def __init__(self) -> None:
        self.seconds_per_step = 0.0

    def add(self, seconds: float) -> None:
        """Adds a step's time."""
        weight = 1.0 if self.seconds_per_step == 0 else 0.05
        self.seconds_per_step += weight * (seconds - self.seconds_per_step)


def reset_peak_memory(device: torch.device) -> None:
    """Resets ``peak_memory_gb`` of a GPU: a process can train several runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory of the run in 2**30 bytes: allocated on the GPU, or resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_resident_bytes() / 2**30
