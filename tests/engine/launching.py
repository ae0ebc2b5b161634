"""Programs in two processes on one machine."""

import os
import subprocess
import sys

ON_PROCESSORS = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def launch(*program: str, environment: dict[str, str] = ON_PROCESSORS) -> None:
    """Runs a program in two processes, on processors if not told otherwise."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, *program], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
