"""Benchmarks: questions, metrics of the answers, and files for official servers and judges."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from vitsplit.tasks.vqa.benchmarks.files import require_answers

SHORT = "Answer the question using a single word or phrase."
"""LLaVA-1.5's instruction for short answers, on a line after the question."""
LETTER = "Answer with the option's letter from the given choices directly."
"""LLaVA-1.5's instruction for multiple choice."""


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One question.

    Attributes:
        id: Unique in its benchmark.
        image: Image file, encoded image (JPEG, PNG), or None for a question without image.
        prompt: The complete prompt, without a placeholder for the image.
    """

    id: str
    image: Path | bytes | None
    prompt: str


QuestionT = TypeVar("QuestionT", bound=BenchmarkQuestion)


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC, Generic[QuestionT]):
    """The questions of a benchmark, their metrics and submission files.

    Attributes:
        name: Name in ``BENCHMARKS``.
        file: File of the questions, for errors.
        questions: All questions, in the order of the file.
        max_new_tokens: Default length limit of an answer, as in LLaVA-1.5.
    """

    name: str
    file: Path
    questions: tuple[QuestionT, ...]
    max_new_tokens: int = 128

    def take(self, count: int) -> Self:
        """The benchmark with its first ``count`` questions only."""
        return dataclasses.replace(self, questions=self.questions[:count])

    def measure(self, answers: Mapping[str, str]) -> dict[str, Any]:
        """JSON-compatible metrics, fractions in 0..1; empty if the reference answers are not public.

        Args:
            answers: Answer by question id.

        Raises:
            DataError: Answers are missing.
        """
        return self.metrics(self._answered(answers))

    def write(self, answers: Mapping[str, str], folder: Path, model: str) -> tuple[Path, ...]:
        """Writes the files for the official server or judge, and returns their paths.

        Args:
            answers: Answer by question id.
            folder: An existing folder.
            model: Name of the model, for formats that include it.

        Raises:
            DataError: Answers are missing.
        """
        paths = []
        for name, content in self.submission(self._answered(answers), model).items():
            path = folder / name
            if path.suffix == ".jsonl":
                text = "".join(json.dumps(row) + "\n" for row in content)
            else:
                text = json.dumps(content, indent=2 if isinstance(content, dict) else None)
            path.write_text(text, encoding="utf-8")
            paths.append(path)
        return tuple(paths)

    def metrics(self, answered: Sequence[tuple[QuestionT, str]]) -> dict[str, Any]:
        """Metrics of pairs of question and answer; none for benchmarks with an external judge."""
        return {}

    @abstractmethod
    def submission(self, answered: Sequence[tuple[QuestionT, str]], model: str) -> dict[str, Any]:
        """File names and contents of a submission: a list of rows for ``.jsonl``, else a JSON value."""

    def _answered(self, answers: Mapping[str, str]) -> list[tuple[QuestionT, str]]:
        require_answers([question.id for question in self.questions], answers, self.file)
        return [(question, answers[question.id]) for question in self.questions]


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value."""
    values = list(values)
    return sum(values) / len(values)


def mean_by(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each group, from pairs of group and value, sorted by group."""
    groups = defaultdict(list)
    for name, value in pairs:
        groups[name].append(value)
    return {name: mean(values) for name, values in sorted(groups.items())}
