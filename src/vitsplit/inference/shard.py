"""Shards of a list of inputs, for several processes or machines that share the work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vitsplit.errors import ConfigError
from vitsplit.inference.inputs import Input


@dataclass(frozen=True)
class Shard:
    """One of several disjoint parts of the inputs.

    The part of an input depends on its name only. A list that changes while the shards start, such as that of a folder
    that is being filled, therefore never moves an input from one shard to another.

    Attributes:
        index: The number of the part, from 1.
        count: The number of parts.

    Raises:
        ConfigError: ``index`` is not in 1..``count``.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(f"--shard {self.index}/{self.count}: must be I/N with I from 1 to N, such as 1/8.")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads ``I/N``.

        Raises:
            ConfigError: The text is invalid.
        """
        if not re.fullmatch("[0-9]{1,9}/[0-9]{1,9}", text):
            raise ConfigError(f"--shard {text[:60]}: must be I/N with I from 1 to N, such as 1/8.")
        return cls(*map(int, text.split("/")))

    def of(self, inputs: Iterable[Input]) -> list[Input]:
        """The inputs of this part, in their order."""
        return [item for item in inputs if _number(item.name) % self.count == self.index - 1]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
