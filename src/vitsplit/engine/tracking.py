"""Where the numbers of a run go: ``metrics.jsonl``, TensorBoard, Weights & Biases. Written by the main process only."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from rich.console import Console

from vitsplit.engine.config import Tracker
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import ConfigError, RunError


class Metrics:
    """Takes each row to ``metrics.jsonl`` and to the trackers; on other processes than the main one it does nothing.

    Args:
        run: The run's folder.
        trackers: Which trackers follow; ``check_trackers`` comes first.
        config: The resolved configuration, as the trackers' hyperparameters.
        run_id: The run's id, so that a resumed run goes on in the same W&B run.
        step: The step that the run starts from; later rows of an earlier start are forgotten.
        main: Whether this is the main process.
    """

    def __init__(
        self,
        run: RunFolder,
        trackers: tuple[Tracker, ...],
        *,
        config: dict[str, Any],
        run_id: str,
        step: int,
        main: bool,
    ) -> None:
        self.run = run
        self.main = main
        self.trackers: list[GeneralTracker] = []
        if not main:
            return
        run.cut_metrics(step)
        with self._told():
            for name in trackers:
                tracker = _tracker(name, run, run_id, step)
                tracker.start()
                self.trackers.append(tracker)
                if name == "wandb":
                    tracker.store_init_configuration(config)
        self._previous_hook = threading.excepthook
        threading.excepthook = self._thread_failed

    def row(self, step: int, values: dict[str, Any]) -> None:
        """One row of training."""
        self._write({"step": step, **values}, {f"train/{name}": value for name, value in values.items()}, step)

    def evaluation(self, step: int, metrics: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        """One row of evaluation: ``metrics`` in the file, and for trackers ``numbers``, without those per class."""
        self._write({"step": step, "eval": metrics}, {f"eval/{name}": value for name, value in numbers.items()}, step)

    def _write(self, row: dict[str, Any], numbers: dict[str, Any], step: int) -> None:
        if not self.main:
            return
        self.run.append_metrics(row)
        with self._told():
            for tracker in self.trackers:
                tracker.log(numbers, step=step)

    def close(self) -> None:
        """Ends the trackers.

        Raises:
            RunError: What they have could not be written.
        """
        if not self.main:
            return
        try:
            with self._told():
                for tracker in self.trackers:
                    tracker.finish()
        finally:
            threading.excepthook = self._previous_hook

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        # What TensorBoard's thread cannot write, the next row or the end raises; a traceback beforehand says no more.
        by_tensorboard = type(failure.thread).__module__.startswith("tensorboard.")
        if not (by_tensorboard and issubclass(failure.exc_type, OSError)):
            self._previous_hook(failure)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"{self.run.path}: what --track asks for could not be written: {error}. Make room on that disk, then "
                "go on with --resume."
            ) from error


def check_trackers(trackers: tuple[Tracker, ...]) -> None:
    """Refuses a tracker that is not installed, before anything is written for it.

    Raises:
        ConfigError: With the command that installs it.
    """
    if "wandb" in trackers and importlib.util.find_spec("wandb") is None:
        raise ConfigError("--track wandb needs Weights & Biases: pip install 'vitsplit[wandb]', or leave it away.")


def _tracker(name: Tracker, run: RunFolder, run_id: str, step: int) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker(run.tensorboard.name, run.path, purge_step=step + 1)
    return WandBTracker("vitsplit", id=run_id, name=run.path.name, dir=str(run.path), resume="allow")


@contextmanager
def log_to(run: RunFolder, console: Console, *, main: bool = True) -> Iterator[None]:
    """Within the block, what ``vitsplit`` logs goes to the console and to ``log.txt``, from the main process only.

    A block inside such a block for the same run changes nothing, so callers may open it earlier than ``fit`` does.
    """
    logger = logging.getLogger("vitsplit")
    if any(getattr(handler, "baseFilename", None) == str(run.log_file.resolve()) for handler in logger.handlers):
        yield
        return
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if main:
        to_file = _LogFile(run, console)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers = [to_file, _ConsoleHandler(console)]
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate


class _LogFile(logging.FileHandler):
    """``log.txt``. That it cannot be written is said once, and is no end of the run: metrics and checkpoints are."""

    def __init__(self, run: RunFolder, console: Console) -> None:
        try:
            super().__init__(run.log_file.resolve(), encoding="utf-8")
        except OSError as error:
            raise RunError(f"{run.log_file} cannot be written: {error}. Give another folder with --out.") from error
        self.console = console
        self.failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Says once that the file cannot be written."""
        if not self.failed:
            self.failed = True
            self.console.print(f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", soft_wrap=True)

    def close(self) -> None:
        """Closes the file; what it still holds and cannot write is lost."""
        with contextlib.suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Prints above a live progress bar, and leaves long lines whole so that a command in them can be copied."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        label = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.console.print(label + self.format(record), soft_wrap=True, markup=False, highlight=False)
