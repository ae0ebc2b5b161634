"""Where this process stands among the processes of a run, before anything else is set up."""

from __future__ import annotations

import atexit

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """The state of this process: rank, number of processes, device. Joins the others at the first call.

    The device is a CUDA GPU, or else the processor: other accelerators (such as Apple's) lack float64, in which losses
    and counts are summed. ``torchrun`` and ``accelerate launch`` both work, on GPUs (nccl) and on processors (gloo).
    """
    # accelerate must also be told that CPU is meant to join processes there; left alone, each would train by itself.
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    return state


def _leave() -> None:
    # A process that ends with the group's threads still running is aborted at times, after all its work is done.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
