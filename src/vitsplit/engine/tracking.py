"""TensorBoard, Weights & Biases, and log handlers of a run. Used by the main process only."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import WandBTracker
from rich.console import Console

from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError
from vitsplit.extras import require


class Tracker(Protocol):
    """Records metrics of a run, in addition to ``metrics.jsonl``."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Logs the metrics of a step."""
        ...

    def finish(self) -> None:
        """Writes pending data and closes the tracker."""
        ...


def open_trackers(
    names: Sequence[str], run: RunFolder, run_id: str, config: dict[str, Any], *, step: int
) -> list[Tracker]:
    """Opens the trackers of a run; call ``check_trackers`` first.

    Args:
        names: See ``LoopConfig.track``.
        run: The run's folder.
        run_id: The run's id, so that a resumed run continues the same W&B run.
        config: The resolved configuration, as hyperparameters.
        step: The first step.
    """
    trackers: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            trackers.append(_TensorBoard(run.tensorboard, step))
        else:
            wandb = WandBTracker("vitsplit", id=run_id, name=run.path.name, dir=str(run.path), resume="allow")
            wandb.start()
            wandb.store_init_configuration(config)
            trackers.append(wandb)
    return trackers


def check_trackers(trackers: Sequence[str]) -> None:
    """Checks that the trackers are installed.

    Raises:
        ConfigError: A package is missing; the message has the command that installs it.
    """
    if "wandb" in trackers:
        require("--track wandb", "wandb", extra="wandb")


class _TensorBoard:
    """Writes TensorBoard event files, synchronously, so that a full disk raises an error in this thread.

    Args:
        folder: Folder of the event files.
        step: The first step; TensorBoard discards later steps of earlier files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # slow to import

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log={"status": "START"})

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Writes the metrics of a step."""
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._write(step=step, summary={"value": values})

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()

    def finish(self) -> None:
        """Closes the file."""
        self._file.close()


def standard_output() -> Console:
    """The console of a run: standard output; in a notebook plain lines, without HTML and control characters."""
    console = Console()
    return Console(force_jupyter=False, force_terminal=False) if console.is_jupyter else console


@contextmanager
def log_to(run: RunFolder, console: Console, *, main: bool = True) -> Iterator[None]:
    """Logs messages of ``vitsplit`` to the console and to ``log.txt`` within the block, on the main process only.

    A nested block for the same run has no effect, so callers may enter it before ``fit`` does.
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
    """Handler of ``log.txt``. A failed write prints one warning and does not stop the run."""

    def __init__(self, run: RunFolder, console: Console) -> None:
        try:
            super().__init__(run.log_file.resolve(), encoding="utf-8")
        except OSError as error:
            raise RunError(f"{run.log_file} cannot be written: {error}. Choose another folder with --out.") from error
        self.console = console
        self.failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """Prints one warning that the file cannot be written."""
        if not self.failed:
            self.failed = True
            self.console.print(f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}", soft_wrap=True)

    def close(self) -> None:
        """Closes the file; buffered messages that cannot be written are lost."""
        with contextlib.suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Prints above a live progress bar, without breaking long lines, so that commands in them can be copied."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        label = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self.console.print(label + self.format(record), soft_wrap=True, markup=False, highlight=False)
