"""This process: its place among the processes of a run, and the signals that ask it to stop."""

from __future__ import annotations

import atexit
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import torch
from accelerate import Accelerator, PartialState

from vitsplit.engine.sharding import check_sharding
from vitsplit.train_config import TrainConfig

StopSignal = Literal["SIGINT", "SIGTERM"]
STOP_SIGNALS: tuple[StopSignal, StopSignal] = ("SIGINT", "SIGTERM")


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


def make_accelerator(config: TrainConfig | None = None) -> Accelerator:
    """Joins the processes of the launch; with a configuration, refuses sharding that cannot work in them.

    Raises:
        ConfigError: The run cannot be sharded so.
    """
    processes = process_state().num_processes
    if config is not None:
        check_sharding(config, processes)
    # Precision is handled by hand: accelerate's own would copy every output to float32.
    return Accelerator(mixed_precision="no")


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM is noted in ``received``; a second one acts as it always does.

    Outside the main thread, where Python lets nobody handle signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.received: StopSignal | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = signal.Signals[name]
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name  # type: ignore[assignment]  # installed for these two only
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
