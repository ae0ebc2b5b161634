"""Records of a run in progress: rows of ``metrics.jsonl``, trackers, and the progress display."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from accelerate import Accelerator
from rich.console import Console

from vitsplit.engine.checkpoint import TrainState
from vitsplit.engine.progress import ProgressView, StepTimer, peak_memory_gb, reset_peak_memory
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.step_numbers import StepResult
from vitsplit.engine.tracking import Tracker, open_trackers
from vitsplit.errors import RunError
from vitsplit.saved_config import config_to_dict
from vitsplit.train_config import TrainConfig


class RunRecords:
    """Writes metrics on the main process; others only sum them up. A context manager, which closes the trackers.

    On creation it writes ``config.json`` and ``environment.json``, and removes rows after ``state.step``, which an
    earlier start of the run has left.

    Args:
        run: The run's folder.
        config: The resolved configuration.
        state: The initial state; it also holds the sums of the next row.
        accelerator: Device and processes.
        console: The console of the progress display.

    Raises:
        RunError: A file could not be written.
    """

    def __init__(
        self, run: RunFolder, config: TrainConfig, state: TrainState, accelerator: Accelerator, console: Console
    ) -> None:
        self.run, self.config, self.state, self.device = run, config, state, accelerator.device
        self.main = accelerator.is_main_process
        self.trackers: list[Tracker] = []
        self._timer = StepTimer()
        reset_peak_memory(self.device)
        if self.main:
            values = config_to_dict(config)
            run.write_config(values)
            run_id = run.record_start(self.device, accelerator.num_processes)
            run.truncate_metrics(state.step)
            with self._tracker_errors():
                self.trackers = open_trackers(config.loop.track, run, run_id, values, step=state.step)
        self.view = ProgressView(console if self.main else None, steps=config.loop.steps, start=state.step)

    def __enter__(self) -> Self:
        self.view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.view.__exit__()
        with self._tracker_errors():
            for tracker in self.trackers:
                tracker.finish()

    def step(self, result: StepResult, seconds: float) -> None:
        """Adds a step to the next row, and shows it.

        Args:
            result: The step's results.
            seconds: Duration of the step.
        """
        state, loop = self.state, self.config.loop
        values = {"loss": result.loss, "grad_norm": result.grad_norm}
        if len(result.terms) > 1:
            for name, value in result.terms.items():
                head, slash, term = name.rpartition("/")
                values[f"{head}{slash}loss_{term}"] = value
        for name, value in values.items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        self._timer.add(seconds)
        lr = {self.config.qualified_name(head, name): rate for (head, name), rate in result.lr.items()}
        images_per_second, memory_gb = loop.batch_size / self._timer.seconds_per_step, peak_memory_gb(self.device)
        if result.step % loop.log_every == 0 or result.step == loop.steps:
            row = {name: total / state.window_steps for name, total in state.window.items()} | lr
            row |= {"images_per_second": images_per_second, "seconds": result.seconds, "peak_memory_gb": memory_gb}
            self._write({"step": result.step, **row}, {f"train/{name}": value for name, value in row.items()})
            state.window, state.window_steps = {}, 0
        self.view.step(
            result.step,
            loss=result.loss,
            lr=next(iter(lr.values())),
            images_per_second=images_per_second,
            seconds_left=self._timer.seconds_per_step * (loop.steps - result.step),
            memory_gb=memory_gb,
        )

    def evaluation(self) -> None:
        """Writes the last evaluation: all metrics to ``metrics.jsonl``, scalar metrics to trackers."""
        by_head = {head: standing.last_metrics for head, standing in self.state.standings.items()}
        numbers = {
            f"eval/{self.config.qualified_name(head, name)}": value
            for head, metrics in by_head.items()
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        # Grouped by head only if heads share a crop, see ``TrainConfig.qualified_name``.
        (metrics,) = by_head.values() if self.config.geometry is None else (by_head,)
        self._write({"step": self.state.step, "eval": metrics}, numbers)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[], None]]:
        """Shows a bar of an evaluation within the block; yields a function to call after every image."""
        try:
            yield self.view.evaluating()
        finally:
            self.view.evaluated()

    def _write(self, row: dict[str, Any], numbers: Mapping[str, float]) -> None:
        if not self.main:
            return
        self.run.append_metrics(row)
        with self._tracker_errors():
            for tracker in self.trackers:
                tracker.log(dict(numbers), step=row["step"])

    @contextmanager
    def _tracker_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run.path}: the files of --track could not be written: {error}. Free disk space, then resume "
                "with --resume."
            ) from error
