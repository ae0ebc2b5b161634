"""Ctrl-C and a scheduler's SIGTERM as a wish to stop, which the loop grants after the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Literal, Self

StopSignal = Literal["SIGINT", "SIGTERM"]
STOP_SIGNALS: tuple[StopSignal, StopSignal] = ("SIGINT", "SIGTERM")


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
