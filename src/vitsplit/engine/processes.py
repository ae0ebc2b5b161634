"""Distributed processes of a run (rank, world size, device), and stop signals."""

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
    """The state of this process: rank, number of processes, device. The first call joins the process group.

    The device is a CUDA GPU if there is one, else the CPU: other accelerators (such as Apple's MPS) lack float64, in
    which losses and counts are summed. Supports ``torchrun`` and ``accelerate launch``, on GPUs (nccl) and CPUs (gloo).
    """
    # Without cpu=True accelerate does not join processes on CPUs: each would train by itself.
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    return state


def _leave() -> None:
    # A process that exits while the threads of the process group still run may be aborted.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_accelerator(config: TrainConfig | None = None) -> Accelerator:
    """Joins the process group; with a configuration, checks its sharding.

    Raises:
        ConfigError: The run cannot be sharded in this way.
    """
    processes = process_state().num_processes
    if config is not None:
        check_sharding(config, processes)
    # Autocast is applied by the trainer: accelerate's mixed precision would convert every output to float32.
    return Accelerator(mixed_precision="no")


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM is recorded in ``received``; a second one has its default effect.

    Does nothing outside the main thread, where Python does not allow signal handlers.
    """

    def __init__(self) -> None:
        self.received: StopSignal | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in STOP_SIGNALS:
                number = signal.Signals[name]
                self._previous[number] = signal.signal(number, self._record)
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name  # type: ignore[assignment]  # installed for these two only
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()
