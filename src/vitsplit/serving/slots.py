"""Limits of what is in progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vitsplit.serving.errors import unavailable


@dataclass
class Slots:
    """Counts what is in progress; used in the event loop only.

    A client has at most three quarters of the slots, so that it cannot take those of all others.
    """

    limit: int
    used: int = 0
    on_change: Callable[[int], None] = field(default=lambda used: None)
    _by_client: Counter[str] = field(default_factory=Counter)

    @property
    def share(self) -> int:
        """Slots of one client."""
        return self.limit - self.limit // 4

    @contextmanager
    def one(self, what: str, client: str) -> Iterator[None]:
        """Takes one slot for a client within the block.

        Raises:
            HttpError: All are taken, or its share is.
        """
        self.check(what, client)
        self.used += 1
        self._by_client[client] += 1
        self.on_change(self.used)
        try:
            yield
        finally:
            self.used -= 1
            self._by_client[client] -= 1
            self._by_client += Counter()  # without clients that have none
            self.on_change(self.used)

    def check(self, what: str, client: str) -> None:
        """Raises ``HttpError`` if all slots are taken, or the share of the client is."""
        if self.used >= self.limit:
            raise unavailable("busy", f"{self.limit} {what} are in progress already")
        if self._by_client[client] >= self.share:
            raise unavailable("busy", f"{self.share} {what} of this address are in progress already")
