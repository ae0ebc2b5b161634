"""What a benchmark is: questions, figures for their answers, and files for whoever else judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SHORT = "Answer the question using a single word or phrase."
"""LLaVA-1.5's request for a short answer; it follows the question on a line of its own."""
LETTER = "Answer with the option's letter from the given choices directly."
"""The same for multiple choice."""


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question as the model is asked it.

    Attributes:
        id: Unique in its benchmark.
        image: The image's file, its encoded content (JPEG, PNG) where the benchmark carries it, or None: text alone.
        prompt: The question with everything that is said around it, without a place for the image.
    """

    id: str
    image: Path | bytes | None
    prompt: str


class Benchmark(Protocol):
    """Questions whose answers are measured here, or written for a server or a judge."""

    @property
    def name(self) -> str:
        """Its name in ``BENCHMARKS``."""
        ...

    @property
    def max_new_tokens(self) -> int:
        """The most tokens of an answer, unless told otherwise; LLaVA-1.5's figure."""
        ...

    def questions(self) -> Sequence[BenchmarkQuestion]:
        """All questions, in the order of the files."""
        ...

    def take(self, count: int) -> Benchmark:
        """The same benchmark on its first ``count`` questions; of POPE, of every category."""
        ...

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """The figures, JSON-ready, shares in 0..1; empty where only a server or a judge can tell.

        Args:
            answers: Answer by id.

        Raises:
            DataError: Answers are missing.
        """
        ...

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """Writes the files that the official server or judge reads, and returns their paths.

        Args:
            answers: Answer by id.
            folder: Where to write; it exists.
            model: What to call the model, where the format has a place for it.

        Raises:
            DataError: Answers are missing.
        """
        ...
