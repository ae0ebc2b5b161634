"""The folder of a run.

```
RUN/
  config.json        the resolved configuration; give it back with --config
  environment.json   one entry per start: versions, device, processes
  log.txt            everything that was said
  metrics.jsonl      one JSON object per row: {"step", "loss", "lr", ...} or {"step", "eval": {...}}; null: not finite
  best/  last/       head bundles: the best evaluation's and the latest; with a folder for each head in a joint run
  checkpoints/       the last two, for --resume
  pictures/          figures and pictures of the last evaluation, once the run is finished: index.html
  tensorboard/       event files
```
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vitsplit.errors import RunError
from vitsplit.training.atomic import recover_folder, write_json, write_text
from vitsplit.training.processes import process_state
from vitsplit.training.serialise import json_text

PACKAGES = ("vitsplit", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")


class RunFolder:
    """Paths of a run's files, and the rules for reading and writing them. Only the main process writes.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.environment_file = self.path / "environment.json"
        self.log_file = self.path / "log.txt"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"

    @classmethod
    def open(cls, path: Path | str, *, resume: bool = False) -> RunFolder:
        """Makes the folder of a new run, or finds that of a stopped one. Called by every process of a launch.

        Raises:
            RunError: The folder is taken (without ``resume``), holds no run (with it), or cannot be made.
        """
        run = cls(path)
        state = process_state()
        if state.is_main_process:
            if resume:
                run._check_resumable()
            else:
                run._check_free()
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RunError(f"{run.path} cannot be made: {error}. Give another --out.") from error
            leftovers = (*run.best.glob(".*"), *run.checkpoints.glob(".step-*"))
            for folder in (run.best, run.last, run.pictures, *map(_replaced, leftovers)):
                recover_folder(folder)
        state.wait_for_everyone()
        return run

    def _check_free(self) -> None:
        if self.config_file.exists():
            raise RunError(
                f"{self.path} already holds a run. Go on with it by --resume, or give another folder with --out."
            )
        # A start that failed before it had a configuration leaves a log and no more.
        if self.path.exists() and (
            not self.path.is_dir() or any(item != self.log_file for item in self.path.iterdir())
        ):
            raise RunError(f"{self.path} exists and is not an empty folder. Give another folder with --out.")

    def _check_resumable(self) -> None:
        if not self.config_file.exists():
            raise RunError(
                f"{self.path} holds no run to resume (no config.json). Check --out, or start one without --resume."
            )

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration of the run.

        Raises:
            RunError: It cannot be read.
        """
        return _read_json(self.config_file)

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the resolved configuration: from now on the folder holds a run."""
        write_json(self.config_file, config)

    def record_start(self, device: torch.device, processes: int) -> str:
        """Adds an entry to ``environment.json`` and returns the run's id, which all its starts share."""
        starts = _read_json(self.environment_file) if self.environment_file.exists() else []
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

    def cut_metrics(self, step: int) -> None:
        """Drops the rows of ``metrics.jsonl`` after a step, and a row that was cut short by a kill."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        write_text(self.metrics_file, "".join(kept))

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
                f"{self.metrics_file} could not be written: {error}. Make room on that disk, then go on with --resume."
            ) from error


def _replaced(leftover: Path) -> Path:
    # .step-00000120.new or .old -> step-00000120
    return leftover.with_name(leftover.stem.removeprefix("."))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}. Start a new run with another --out.") from error


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
