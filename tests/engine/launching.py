"""Programs in two processes on one machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

ON_CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
SCRIPT = Path(__file__).with_name("launch_runs.py")


def launch(*program: str, environment: dict[str, str] = ON_CPU) -> None:
    """Runs a program in two processes, on CPUs by default."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, *program], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder that all processes of the tests share."""
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    folder.mkdir(exist_ok=True)
    return folder


def launch_once(out: Path, runs: Callable[[], Mapping[str, Sequence[Mapping]]]) -> None:
    """Trains runs in two processes, one after the other (see launch_runs.py), unless another test worker has."""
    with FileLock(out / "lock"):
        if not (out / "done").exists():
            launch(str(SCRIPT), str(out), json.dumps(runs()))
            (out / "done").touch()
