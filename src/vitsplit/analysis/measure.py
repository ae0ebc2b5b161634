"""Measurement of time and memory, and description of the machine, for benchmarks.

Times are medians with quartiles. Compared methods are run in turns, so that other load on the machine affects all of
them, and ratios are computed turn by turn.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from vitsplit.memory import peak_resident_bytes
from vitsplit.version import __version__

T = TypeVar("T")
Say = Callable[[str], None]
"""Callback for progress messages."""

PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192}
"""Side of the matrices of the reference product, large enough for the peak speed of a device."""
_WARM_UP_PRODUCTS = 2


@dataclass(frozen=True)
class Spread:
    """A median with quartiles."""

    median: float
    q1: float
    q3: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Of at least one sample; quartiles are interpolated."""
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, q1, q3)

    def quartiles(self, digits: int) -> str:
        """The quartiles as text."""
        return f"{self.q1:.{digits}f} to {self.q3:.{digits}f}"


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratio of paired samples.

    Args:
        numerators: One sample per turn.
        denominators: Samples of the same turns.
    """
    return Spread.of([above / below for above, below in zip(numerators, denominators, strict=True)])


def run_interleaved(
    functions: Mapping[str, Callable[[], T]],
    *,
    turns: int,
    warmup: int,
    say: Say = lambda text: None,
) -> dict[str, list[T]]:
    """Runs functions in turns, so that other load on the machine affects all of them alike.

    The order rotates from turn to turn, since the state of caches depends on the previous function.

    Args:
        functions: Name to function.
        turns: Number of measured turns.
        warmup: Number of warm-up turns.
        say: Called with progress messages.

    Returns:
        The results of each function in the measured turns.
    """
    order = list(functions)
    found: dict[str, list[T]] = {name: [] for name in order}
    for turn in range(-warmup, turns):
        first = (turn + warmup) % len(order)
        for name in order[first:] + order[:first]:
            result = functions[name]()
            if turn >= 0:
                found[name].append(result)
        say("warming up" if turn < 0 else f"turn {turn + 1} of {turns}")
    return found


class Stopwatch:
    """Measures the time between ``start`` and ``stop`` by named parts.

    On a GPU, marks are CUDA events, so that parts are device times; on a CPU, they are readings of the clock.

    Args:
        device: The device of the measured work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: list[str] = []
        self._marks: list[Any] = []
        self._began = 0.0

    def start(self) -> None:
        """Restarts, after synchronizing with the device."""
        self._wait()
        self._names, self._marks = [], [self._now()]
        self._began = time.perf_counter()

    def mark(self, part: str) -> None:
        """Assigns the time since the last mark (or the start) to ``part``, which may occur several times."""
        self._names.append(part)
        self._marks.append(self._now())

    def stop(self, rest: str) -> tuple[float, dict[str, float]]:
        """Synchronizes with the device.

        Args:
            rest: The part since the last mark.

        Returns:
            Wall time since the start in seconds, and seconds of each part.
        """
        self.mark(rest)
        self._wait()
        total = time.perf_counter() - self._began
        parts: dict[str, float] = {}
        for name, before, after in zip(self._names, self._marks, self._marks[1:], strict=False):
            parts[name] = parts.get(name, 0.0) + self._between(before, after)
        return total, parts

    def time(self, function: Callable[[], object]) -> float:
        """Seconds of a call, including work on the device."""
        self.start()
        function()
        return self.stop("call")[0]

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, before: Any, after: Any) -> float:
        if self.device.type != "cuda":
            return float(after - before)
        return float(before.elapsed_time(after)) / 1000

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def product_speed(
    device: torch.device, dtype: torch.dtype, *, repeats: int = 4, side: int | None = None
) -> list[float]:
    """Speed of a product of two square matrices, in 10^9 multiply-adds per second, as a reference.

    Args:
        device: The device.
        dtype: Data type of the matrices.
        repeats: Number of measurements, after two for warm-up.
        side: Side of the matrices; None: of ``PRODUCT_SIDES``.
    """
    side = side or PRODUCT_SIDES[device.type]
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    watch = Stopwatch(device)
    products = {"product": lambda: watch.time(lambda: left @ right)}
    seconds = run_interleaved(products, turns=repeats, warmup=_WARM_UP_PRODUCTS)["product"]
    return [side**3 / each / 1e9 for each in seconds]


def free_memory(device: torch.device) -> None:
    """Releases unused cached GPU memory for other processes."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory.

    Attributes:
        step: Bytes added by the measured work. On a GPU the peak allocated by PyTorch; on a CPU the growth of the peak
            resident set size.
        process: Peak resident set size in bytes, including libraries; on a GPU the same as ``step``.
    """

    step: int
    process: int


class MemoryMeter:
    """Measures the peak memory since its construction, in a process that does nothing else.

    Args:
        device: The device of the measured work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = peak_resident_bytes()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def read(self) -> PeakMemory:
        """The peak so far."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            return PeakMemory(peak, peak)
        after = peak_resident_bytes()
        return PeakMemory(after - self._before, after)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The context of time measurements: device, CPU, threads, versions, and system load."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": None if sys.platform == "win32" else [round(load, 2) for load in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "vitsplit": __version__,
    }


def _cpu_name() -> str:
    """The name of the CPU, if available."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
