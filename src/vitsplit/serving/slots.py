"""Limits of what is in progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vitsplit.serving.errors import unavailable


@dataclass
class Slots:
    """Counts what is in progress; used in the event loop only."""

    limit: int
    used: int = 0
    on_change: Callable[[int], None] = field(default=lambda used: None)

    @contextmanager
    def one(self, what: str) -> Iterator[None]:
        """Takes one slot within the block.

        Raises:
            HttpError: All are taken.
        """
        self.check(what)
        self.used += 1
        self.on_change(self.used)
        try:
            yield
        finally:
            self.used -= 1
            self.on_change(self.used)

    def check(self, what: str) -> None:
        """Raises ``HttpError`` if all slots are taken."""
        if self.used >= self.limit:
            raise unavailable("busy", f"{self.limit} {what} are in progress already")
