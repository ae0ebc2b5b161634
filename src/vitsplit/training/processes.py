"""Where this process stands among the processes of a run, before anything else is set up."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The state of this process: rank, number of processes, device. Joins the others at the first call.

    ``torchrun`` and ``accelerate launch`` both work, on GPUs (nccl) and on processors (gloo).
    """
    # accelerate joins processes on CPU only when told that CPU is meant; left alone, each would train by itself.
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    has_group_backend = torch.cuda.is_available() or torch.xpu.is_available()
    if PartialState._shared_state == {}:
        return PartialState(cpu=True) if launched and not has_group_backend else PartialState()
    return PartialState()
