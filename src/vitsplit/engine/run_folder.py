"""The folder of a run.

```
RUN/
  config.json        the resolved configuration; give it back with --config
  data.json          names, sizes and times of the files that it is trained and evaluated on
  environment.json   one entry per start: versions, device, processes
  log.txt            everything that was said
  metrics.jsonl      one JSON object per row: {"step", "loss", "lr", ...} or {"step", "eval": {...}}; null: not finite
  best/  last/       head bundles: the best evaluation's and the latest; in folders by head where heads share a crop
  checkpoints/       the last two, for --resume
  pictures/          figures and pictures of the last evaluation, once the run is finished: index.html
  tensorboard/       event files
```

While a process is at work there is also ``.lock`` (see ``folder_lock``), and until ``config.json`` stands
``.start.json``: the settings as they were given, from which ``--resume`` begins anew where a start was killed so early.
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
"""Greater numbers of steps no run has; up to it JSON's numbers are exact everywhere."""
PACKAGES = ("vitsplit", "torch", "torchvision", "timm", "accelerate", "safetensors", "numpy")


class RunFolder:
    """Paths of a run's files, and the rules for reading and writing them. Only the main process writes.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG_FILE
        self.start_file = self.path / START_FILE
        self.data_file = self.path / "data.json"
        self.environment_file = self.path / "environment.json"
        self.log_file = self.path / "log.txt"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.pictures = self.path / "pictures"
        self.tensorboard = self.path / "tensorboard"
        self.holds_run = False
        """Whether there was a run to resume when the folder was opened for that."""

    @classmethod
    @contextmanager
    def open(cls, path: Path | str, *, resume: bool = False) -> Iterator[RunFolder]:
        """Within the block the folder is this launch's alone: of a new run, or with ``resume`` of a stopped one.

        Called by every process of a launch. A start that was killed before it had a ``config.json`` has trained
        nothing: the folder is then as free as an empty one, also for ``resume``, which leaves ``holds_run`` false.

        Raises:
            RunError: Another process holds the folder, it is taken (without ``resume``) or there is none or none of a
                run (with it), it cannot be made, or a link in it leads elsewhere.
        """
        run = cls(path)
        state = process_state()
        with contextlib.ExitStack() as stack:
            if state.is_main_process:
                if resume and not run.path.is_dir():
                    raise RunError(
                        f"{run.path} holds no run to resume: there is no such folder. Check --out, or start a run "
                        "without --resume."
                    )
                stack.enter_context(hold_folder(run.path))
                run._check_links()
                if not (resume and run.config_file.exists()):
                    run._check_free(resume)
                leftovers = (*run.best.glob(".*"), *run.checkpoints.glob(".step-*"))
                for folder in (run.best, run.last, run.pictures, *map(_replaced, leftovers)):
                    recover_folder(folder)
            # Before the main process can write one.
            run.holds_run = resume and run.config_file.exists()
            state.wait_for_everyone()
            yield run

    def _check_links(self) -> None:
        """Refuses links in the folder: what is replaced, removed or added to could lie anywhere."""
        own = {path for path in vars(self).values() if isinstance(path, Path)} - {self.path}
        items = [item for folder in (self.path, self.checkpoints, self.best) for item in folder.glob("*")]
        for item in items:
            is_own = item in own or item.parent in own or item.name.startswith(".")
            if is_own and item.is_symlink():
                raise RunError(
                    f"{item} is a link to {item.readlink()}: files there could be written over or removed. Put the "
                    "file or folder itself in its place, or remove the link. (The run's folder itself may be a link.)"
                )

    def _check_free(self, resume: bool) -> None:
        if self.config_file.exists():
            raise RunError(
                f"{self.path} already holds a run. Go on with it by --resume, or give another folder with --out."
            )
        # What a start leaves that failed, or was killed, before it had a configuration.
        early = {self.log_file, self.path / LOCK, self.start_file}
        if self.start_file.exists():
            early.add(self.data_file)
        written = (self.config_file, self.start_file, self.data_file)
        others = [
            item
            for item in sorted(self.path.iterdir())
            if item not in early and not any(is_leftover(item, file) for file in written)
        ]
        if others and resume:
            raise RunError(
                f"{self.path} holds no run to resume (no {CONFIG_FILE}, but {others[0].name}). Check --out, or start a "
                "run in another folder without --resume."
            )
        if others:
            raise RunError(
                f"{self.path} exists and is not an empty folder ({others[0].name}). Give another folder with --out."
            )

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration of the run, as it was written.

        Raises:
            RunError: It cannot be read, or is no configuration.
        """
        advice = "Put the run's own back, or start a new run with another --out."
        config = read_json(self.config_file, error=RunError, advice=advice)
        if not isinstance(config, dict):
            raise RunError(f"{self.config_file}: not an object with settings. {advice}")
        return config

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes the resolved configuration: from now on the folder holds a run."""
        write_json(self.config_file, config)
        self.start_file.unlink(missing_ok=True)

    def write_start(self, config: dict[str, Any]) -> None:
        """Writes the settings as they were given, for a ``--resume`` after a kill before ``write_config``."""
        write_json(self.start_file, config)

    def record_start(self, device: torch.device, processes: int) -> str:
        """Adds an entry to ``environment.json`` and returns the run's id, which all its starts share."""
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
        """The starts so far. The first has the run's id, which is a name of a run at a tracker."""
        if not self.environment_file.exists():
            return []
        advice = "Delete it: it only records the starts of the run, and is begun anew."
        starts = read_json(self.environment_file, error=RunError, advice=advice)
        if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
            raise RunError(f"{self.environment_file}: not a list of starts. {advice}")
        for start in starts[:1]:
            where = f"{self.environment_file}: run_id"
            if not string(start.get("run_id"), where, 64, error=RunError, advice=advice).isalnum():
                raise RunError(f"{where} must be letters and digits. {advice}")
        return starts

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``, without one that was cut short by a kill.

        Raises:
            RunError: A row is no row of a run; the message names its line.
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

    def cut_metrics(self, step: int) -> None:
        """Drops the rows of ``metrics.jsonl`` after a step, and a row that was cut short by a kill.

        Raises:
            RunError: A row cannot be read, or the file not be written.
        """
        if self.metrics_file.exists():
            kept = [json_text(row) + "\n" for row in self.read_metrics() if row["step"] <= step]
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
