"""The memory and the cores of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def available_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is the reason of an error; on a CPU, PyTorch has no type for it."""
    import torch  # slow to import, and not for the cores

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def peak_resident_bytes() -> int:
    """Peak resident set size of this process, in bytes.

    On Linux this is ``VmHWM``, which unlike ``getrusage`` does not include the parent's peak.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
