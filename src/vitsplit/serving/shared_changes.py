"""Changes of the heads that the workers behind one port have in common, in a folder of the server.

``changes.json`` lists all changes since the start. A worker that makes one adds it at the end, and waits until the
files ``worker-PID.json`` of the others say that they have made it, too.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vitsplit.atomic_files import write_json
from vitsplit.errors import FolderInUseError, RunError
from vitsplit.files import read_json
from vitsplit.folder_lock import hold_folder, is_running

POLL_SECONDS = 0.05
_ADVICE = "Restart the server."


@dataclass(frozen=True)
class Change:
    """A head that was added, or removed.

    Attributes:
        name: Its name.
        path: The bundle, relative to the root of the bundles; None: it was removed.
        sha256: Identification of the bundle, see ``vitsplit.inference.prediction_log.bundle_ids``.
    """

    name: str
    path: str | None = None
    sha256: str | None = None


class SharedChanges:
    """The changes, for one worker.

    Args:
        folder: The folder that the workers share.
        worker: The number of the worker's process; None: of this one.
    """

    def __init__(self, folder: Path, worker: int | None = None) -> None:
        self._file = folder / "changes.json"
        self._folder = folder
        self._own = folder / f"worker-{worker or os.getpid()}.json"
        self._state: tuple[int, int, int] | None = None

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """Within the block no other worker makes a change of its own."""
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(hold_folder(self._folder))
                    break
                except FolderInUseError:
                    await asyncio.sleep(POLL_SECONDS)
            yield

    def changed(self) -> bool:
        """Whether the file of the changes is another one than at the last call."""
        state = self._file.stat() if self._file.exists() else None
        known, self._state = self._state, None if state is None else (state.st_ino, state.st_mtime_ns, state.st_size)
        return known != self._state

    def read(self) -> list[Change]:
        """All changes."""
        if not self._file.exists():
            return []
        return [Change(**each) for each in read_json(self._file, error=RunError, advice=_ADVICE)]

    def leave(self) -> None:
        """Says that this worker ends, so that no other waits for it."""
        self._own.unlink(missing_ok=True)

    def add(self, change: Change) -> int:
        """Adds a change, within ``exclusively``; returns their number."""
        changes = [*self.read(), change]
        write_json(self._file, [asdict(each) for each in changes])
        return len(changes)

    def report(self, count: int, failure: str = "") -> None:
        """Says how many changes this worker has made, and why the last one failed."""
        write_json(self._own, {"count": count, "failure": failure})

    async def others(self, count: int, seconds: float) -> str:
        """Waits until the other workers have made so many changes; returns why one of them failed, or nothing.

        Args:
            count: The number of changes.
            seconds: The time limit.
        """
        end = time.monotonic() + seconds
        while True:
            reports = [self._report_of(file) for file in self._folder.glob("worker-*.json") if file != self._own]
            failures = [failure for done, failure in reports if failure and done == count]
            if failures:
                return failures[0]
            if all(done >= count for done, _ in reports):
                return ""
            if time.monotonic() > end:
                return f"another worker did not make the change within {seconds:g} seconds"
            await asyncio.sleep(POLL_SECONDS)

    def _report_of(self, file: Path) -> tuple[int, str]:
        """The count and the failure of a worker; one that has ended needs no changes."""
        if not is_running(int(file.stem.removeprefix("worker-"))):
            file.unlink(missing_ok=True)
            return 1 << 62, ""
        found = read_json(file, error=RunError, advice=_ADVICE)
        return int(found["count"]), str(found["failure"])
