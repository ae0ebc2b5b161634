"""The folder of a run.

```
RUN/
  config.json        the resolved configuration, for --config
  layers.json        with --layers auto: the candidates, their losses and cost, and the choice, by head
  data.json          names, sizes and times of the training and validation files
  environment.json   one entry per start: versions, device, processes
  log.txt            log messages
  metrics.jsonl      one JSON object per row: {"step", "loss", "lr", ...} or {"step", "eval": {...}}; null: not finite
  best/  last/       head bundles with the best and the last weights; one subfolder per head if heads share a crop
  checkpoints/       the last two, for --resume
  pictures/          metrics and pictures of the last evaluation, once the run is finished: index.html
  tensorboard/       event files
```

While a process uses the folder there is also ``.lock`` (see ``folder_lock``), and until ``config.json`` is written
``.start.json``: the settings as given, with which ``--resume`` restarts a run that was killed this early.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vitsplit.atomic_files import is_leftover, json_text, recover_folder, write_json, write_text
from vitsplit.engine.processes import process_state
from vitsplit.errors import RunError
from vitsplit.files import LARGE_FILE, read_json, read_json_lines, real_number, string, whole_number
from vitsplit.folder_lock import LOCK, hold_folder
from vitsplit.train_config import CONFIG_FILE, START_FILE

MOST_STEPS = 1 << 53
"""Upper limit of step counts; integers up to it are exact in every JSON parser."""
PACKAGES = ("vitsplit", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")


class RunFolder:
    """Paths of a run's files, and methods that read and write them. Only the main process writes.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG_FILE
        self.start_file = self.path / START_FILE
        self.choice_file = self.path / "layers.json"
        self.data_file = self.path / "data.json"
        self.environment_file = self.path / "environment.json"
        self.log_file = self.path / "log.txt"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"
        self.search = self.path / "search"
        self.holds_run = False
        """Whether the folder was opened with ``resume`` and contains a run."""

    @classmethod
    @contextmanager
    def open(cls, path: Path | str, *, resume: bool = False) -> Iterator[RunFolder]:
        """Locks the folder within the block, for a new run, or with ``resume`` for a stopped one.

        Called by every process of a launch. A run that was killed before it wrote ``config.json`` has not trained: the
        folder is then treated as empty, also with ``resume``, which leaves ``holds_run`` false.

        Raises:
            RunError: Another process uses the folder; it is not empty (without ``resume``); it does not exist or holds
                no run (with ``resume``); it cannot be created; or it contains a symbolic link.
        """
        run = cls(path)
        state = process_state()
        with contextlib.ExitStack() as stack:
            if state.is_main_process:
                if resume and not run.path.is_dir():
                    raise RunError(
                        f"{run.path} holds no run to resume: the folder does not exist. Check --out, or start a new "
                        "run without --resume."
                    )
                stack.enter_context(hold_folder(run.path))
                run._check_links()
                if not (resume and run.config_file.exists()):
                    run._check_free(resume)
                leftovers = (*run.best.glob(".*"), *run.checkpoints.glob(".step-*"))
                for folder in (run.best, run.last, run.pictures, *map(_replaced, leftovers)):
                    recover_folder(folder)
            # Checked on all processes before the main process can write one.
            run.holds_run = resume and run.config_file.exists()
            state.wait_for_everyone()
            yield run

    def _check_links(self) -> None:
        """Refuses symbolic links in the folder: files outside of it could be overwritten or removed."""
        own = {path for path in vars(self).values() if isinstance(path, Path)} - {self.path}
        items = [item for folder in (self.path, self.checkpoints, self.best) for item in folder.glob("*")]
        for item in items:
            is_own = item in own or item.parent in own or item.name.startswith(".")
            if is_own and item.is_symlink():
                raise RunError(
                    f"{item} is a link to {item.readlink()}: files there could be overwritten or removed. Replace the "
                    "link with the file or folder itself, or remove it. (The run's folder itself may be a link.)"
                )

    def _check_free(self, resume: bool) -> None:
        if self.config_file.exists():
            raise RunError(
                f"{self.path} already holds a run. Resume it with --resume, or choose another folder with --out."
            )
        # Files of a run that failed or was killed before it wrote its configuration.
        early = {self.log_file, self.path / LOCK, self.start_file}
        if self.start_file.exists():
            early |= {self.data_file, self.choice_file, self.search}
        written = (self.config_file, self.start_file, self.data_file, self.choice_file)
        others = [
            item
            for item in sorted(self.path.iterdir())
            if item not in early and not any(is_leftover(item, file) for file in written)
        ]
        if others and resume:
            raise RunError(
                f"{self.path} holds no run to resume (no {CONFIG_FILE}, but {others[0].name}). Check --out, or start a "
                "new run in another folder without --resume."
            )
        if others:
            raise RunError(
                f"{self.path} exists and is not an empty folder ({others[0].name}). Choose another folder with --out."
            )

    def read_config(self) -> dict[str, Any]:
        """Reads the resolved configuration of the run.

        Raises:
            RunError: It cannot be read, or is not a configuration.
        """
        advice = "Restore the run's own file, or start a new run with another --out."
        config = read_json(self.config_file, error=RunError, advice=advice)
        if not isinstance(config, dict):
            raise RunError(f"{self.config_file}: must be an object with settings. {advice}")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the resolved configuration, after which the folder holds a run."""
        write_json(self.config_file, config)
        self.start_file.unlink(missing_ok=True)

    def write_choice(self, choice: dict[str, Any]) -> None:
        """Writes how ``--layers auto`` chose the layers of each head."""
        write_json(self.choice_file, choice)

    def read_choice(self) -> dict[str, Any]:
        """Reads the output of ``write_choice``; empty if the layers were given.

        Raises:
            RunError: The file is invalid.
        """
        if not self.choice_file.exists():
            return {}
        advice = "Delete it: it only records the choice of layers."
        choice = read_json(self.choice_file, error=RunError, advice=advice)
        if not isinstance(choice, dict):
            raise RunError(f"{self.choice_file}: must be an object with the choice of each head. {advice}")
        return choice

    def write_start(self, config: dict[str, Any]) -> None:
        """Writes the settings as given, for ``--resume`` after a kill before ``write_config``."""
        write_json(self.start_file, config)

    def record_start(self, device: torch.device, processes: int) -> str:
        """Adds an entry to ``environment.json``; returns the run's id, which is that of its first start."""
        starts = self._starts()
        run_id = starts[0]["run_id"] if starts else secrets.token_hex(4)
        starts.append(
            {
                "run_id": run_id,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": " ".join(sys.argv),
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "processes": processes,
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "versions": {name: found for name in PACKAGES if (found := _version(name))},
            }
        )
        write_json(self.environment_file, starts)
        return run_id

    def _starts(self) -> list[dict[str, Any]]:
        """The starts so far. The first one's ``run_id`` also identifies the run in trackers."""
        if not self.environment_file.exists():
            return []
        advice = "Delete it: it only records the starts of the run, and is created again."
        starts = read_json(self.environment_file, error=RunError, advice=advice)
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise RunError(f"{self.environment_file}: must be a list of objects. {advice}")
        for start in starts[:1]:
            where = f"{self.environment_file}: run_id"
            if not string(start.get("run_id"), where, 64, error=RunError, advice=advice).isalnum():
                raise RunError(f"{where} must be letters and digits. {advice}")
        return starts

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the rows of ``metrics.jsonl``, without an incomplete last row (left by a kill).

        Raises:
            RunError: A row is invalid; the message names its line.
        """
        if not self.metrics_file.exists():
            return []
        rows = []
        for number, row in read_json_lines(self.metrics_file, limit=LARGE_FILE, error=RunError, may_end_early=True):
            where = f"{self.metrics_file}: line {number}"
            whole_number(row.get("step"), f"{where}: step", 0, MOST_STEPS, error=RunError)
            for name in ("loss", "seconds"):
                if row.get(name) is not None:
                    real_number(row[name], f"{where}: {name}", error=RunError)
            if not isinstance(row.get("eval", {}), dict):
                raise RunError(f"{where}: eval must be an object. Correct it, or remove the line.")
            rows.append(row)
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Removes the rows of ``metrics.jsonl`` after a step, and an incomplete last row.

        Raises:
            RunError: A row cannot be read, or the file cannot be written.
        """
        if self.metrics_file.exists():
            rows = [json_text(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
            write_text(self.metrics_file, "".join(rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Adds a row to ``metrics.jsonl``.

        Raises:
            RunError: It could not be written.
        """
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json_text(row) + "\n")
        except OSError as error:
            raise RunError(
                f"{self.metrics_file} could not be written: {error}. Free disk space, then resume with --resume."
            ) from error


def _replaced(leftover: Path) -> Path:
    # .step-00000120.new or .old -> step-00000120
    return leftover.with_name(leftover.stem.removeprefix("."))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
