"""Metrics of short answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vitsplit.tasks.base import Evaluation

if TYPE_CHECKING:
    from vitsplit.tasks.vqa.data import ValVqaSample


class VqaMeasurement(NamedTuple):
    """The result on one sample.

    Attributes:
        answers: Answers to the first question of each conversation.
        loss: Sum of the negative log-likelihoods of the tokens of the reference answers.
        num_tokens: Number of these tokens.
    """

    answers: list[str]
    loss: float
    num_tokens: int


class VqaMetric:
    """Scores the answers to the first questions and the likelihood of the reference answers; see ``Metric``.

    ``exact_match`` and ``set_match`` are fractions of the questions. ``answer_loss`` is the mean negative
    log-likelihood per token of all reference answers, and ``likelihood`` is ``exp(-answer_loss)``. The score
    is ``exact_match`` for single questions, and ``likelihood`` for conversations of several turns.
    """

    def __init__(self) -> None:
        # Exact matches, set matches, questions, loss, tokens, turns, samples.
        self.sums = torch.zeros(7, dtype=torch.float64)

    def update(self, prediction: VqaMeasurement, sample: ValVqaSample) -> None:
        """Adds a sample."""
        conversations = sample.sample.conversations
        truths = [conversation[0].answer for conversation in conversations]
        pairs = list(zip(prediction.answers, truths, strict=True))
        exact, sets = sum(exact_match(*pair) for pair in pairs), sum(set_match(*pair) for pair in pairs)
        turns = sum(len(each) for each in conversations)
        counts = [exact, sets, len(pairs), prediction.loss, prediction.num_tokens, turns, 1]
        self.sums += torch.tensor(counts, dtype=torch.float64)

    def state(self) -> Tensor:
        """The sums."""
        return self.sums

    def merge(self, states: Sequence[Tensor]) -> None:
        """Sums the states."""
        self.sums = torch.stack([*states]).sum(0)

    def compute(self) -> Evaluation:
        """The metrics."""
        exact, sets, questions, loss, tokens, turns, samples = self.sums.tolist()
        answer_loss = loss / max(tokens, 1)
        metrics = {
            "exact_match": exact / questions,
            "set_match": sets / questions,
            "answer_loss": answer_loss,
            "likelihood": float(torch.tensor(-answer_loss).exp()),
            "questions": int(questions),
            "images": int(samples),
        }
        score_name = "exact_match" if turns == questions else "likelihood"
        return Evaluation(metrics=metrics, score=metrics[score_name], score_name=score_name)


def normalized(answer: str) -> str:
    """Normalizes an answer: lower case, single spaces, no trailing period."""
    return " ".join(answer.lower().split()).rstrip(".").strip()


def exact_match(answer: str, truth: str) -> bool:
    """Whether the normalized answers are equal."""
    return normalized(answer) == normalized(truth)


def set_match(answer: str, truth: str) -> bool:
    """Whether the sets of comma-separated parts are equal, as in DAQUAR."""
    return _parts(answer) == _parts(truth)


def _parts(answer: str) -> set[str]:
    return {normalized(part) for part in answer.split(",")} - {""}
