"""What is recorded of a run while it goes on: rows of ``metrics.jsonl`` and of trackers, and progress on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from accelerate import Accelerator
from rich.console import Console

from vitsplit.engine.checkpoint import TrainState
from vitsplit.engine.progress import Pace, ProgressView, forget_peak_memory, peak_memory_gb
from vitsplit.engine.run_folder import RunFolder
from vitsplit.engine.step_numbers import StepResult
from vitsplit.engine.tracking import Tracker, open_trackers
from vitsplit.errors import RunError
from vitsplit.saved_config import config_to_dict
from vitsplit.train_config import TrainConfig


class RunRecords:
    """Writes on the main process; on others it only sums up. A context manager, at whose end trackers are closed.

    At its start it writes what the folder says of this start of the run, and forgets rows of an earlier start after
    ``state.step``.

    Args:
        run: The run's folder.
        config: The resolved configuration.
        state: The numbers that the run starts from; the sums of the next row are kept in it.
        accelerator: Device and processes.
        console: Where progress is shown.

    Raises:
        RunError: Something could not be written.
    """

    def __init__(
        self, run: RunFolder, config: TrainConfig, state: TrainState, accelerator: Accelerator, console: Console
    ) -> None:
        self.run, self.config, self.state, self.device = run, config, state, accelerator.device
        self.main = accelerator.is_main_process
        self.trackers: list[Tracker] = []
        self._pace = Pace()
        forget_peak_memory(self.device)
        if self.main:
            values = config_to_dict(config)
            run.write_config(values)
            run_id = run.record_start(self.device, accelerator.num_processes)
            run.cut_metrics(state.step)
            with self._told():
                self.trackers = open_trackers(config.loop.track, run, run_id, values, step=state.step)
        self.view = ProgressView(console if self.main else None, steps=config.loop.steps, start=state.step)

    def __enter__(self) -> Self:
        self.view.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.view.__exit__()
        with self._told():
            for tracker in self.trackers:
                tracker.finish()

    def step(self, result: StepResult, seconds: float) -> None:
        """Adds a step, which took so many seconds, to the next row, and shows it."""
        state, loop = self.state, self.config.loop
        values = {"loss": result.loss, "grad_norm": result.grad_norm}
        if len(result.terms) > 1:
            for name, value in result.terms.items():
                head, slash, term = name.rpartition("/")
                values[f"{head}{slash}loss_{term}"] = value
        for name, value in values.items():
            state.window[name] = state.window.get(name, 0.0) + value
        state.window_steps += 1
        self._pace.add(seconds)
        lr = {self.config.named(head, name): rate for (head, name), rate in result.lr.items()}
        images_per_second, memory_gb = loop.batch_size / self._pace.seconds_per_step, peak_memory_gb(self.device)
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
            seconds_left=self._pace.seconds_per_step * (loop.steps - result.step),
            memory_gb=memory_gb,
        )

    def evaluation(self) -> None:
        """Adds a row of the last evaluation: all metrics in the file, and for trackers those that are one number."""
        by_head = {head: standing.last_metrics for head, standing in self.state.standings.items()}
        numbers = {
            f"eval/{self.config.named(head, name)}": value
            for head, metrics in by_head.items()
            for name, value in metrics.items()
            if isinstance(value, int | float)
        }
        # The file has groups by head where it has groups at all, see ``TrainConfig.named``.
        (alone,) = by_head.values() if self.config.geometry is None else (by_head,)
        self._write({"step": self.state.step, "eval": alone}, numbers)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[], None]]:
        """Within the block a bar of the images of an evaluation, with what to call after each of them."""
        try:
            yield self.view.evaluating()
        finally:
            self.view.evaluated()

    def _write(self, row: dict[str, Any], numbers: Mapping[str, float]) -> None:
        if not self.main:
            return
        self.run.append_metrics(row)
        with self._told():
            for tracker in self.trackers:
                tracker.log(dict(numbers), step=row["step"])

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run.path}: what --track asks for could not be written: {error}. Make room on that disk, then "
                "resume the run with --resume."
            ) from error
