from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from launching import launch_once, shared_folder
from pair_runs import distributed_runs, sharded_runs


@pytest.fixture(scope="session")
def pairs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs in two processes: ``distributed``, and ``fsdp2``."""
    out = shared_folder(tmp_path_factory, "pairs")
    launch_once(
        out,
        lambda: {
            f"{name}/{run}": each
            for name, runs in (
                ("distributed", distributed_runs(out / "distributed", scenes)),
                ("fsdp2", sharded_runs("fsdp2", out / "fsdp2", scenes)),
            )
            for run, each in runs.items()
        },
    )
    return out


@pytest.fixture(autouse=True)
def one_thread_and_fresh_accelerate():
    """Resets accelerate's process-wide state before every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
