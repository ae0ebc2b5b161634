"""The scores of a graph on labeled images, next to those of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vitsplit.errors import ExportError
from vitsplit.inference.predictor import LoadedHead, Predictor
from vitsplit.tasks.base import Evaluation

LARGEST_CHANGE = 0.005
"""The largest change of a score: half a point of mIoU or AP."""
LARGEST_CHANGE_OF_DEPTHS = 0.002
"""The largest change of the mean relative error of depths."""


@dataclass(frozen=True)
class Labeled:
    """Labeled images of a head.

    Attributes:
        name: Name of the data set.
        evaluate: Evaluates a head on them.
    """

    name: str
    evaluate: Callable[[LoadedHead], Evaluation]


def score(head: LoadedHead, labeled: Labeled) -> tuple[str, float, float]:
    """The measure by which a head's graph is accepted: its name, value and largest change."""
    evaluation = labeled.evaluate(head)
    if head.task.name == "depth":
        return "abs_rel", float(evaluation.metrics["abs_rel"]), LARGEST_CHANGE_OF_DEPTHS
    return evaluation.score_name, evaluation.score, LARGEST_CHANGE


def compare_scores(
    expected: Mapping[str, tuple[str, float, float]], opened: Predictor, data: Mapping[str, Labeled]
) -> dict[str, dict[str, Any]]:
    """The scores of a graph and of the model, by head, JSON-ready.

    Args:
        expected: ``score`` of each head of the model.
        opened: The graph.
        data: The labeled images of each head.
    """
    found = {}
    for name, labeled in data.items():
        measure, value, largest = expected[name]
        _, got, _ = score(opened[name], labeled)
        found[name] = {
            "data": labeled.name,
            "measure": measure,
            "model": value,
            "graph": got,
            "change": got - value,
            "largest_change": largest,
        }
    return found


def check_comparable(expected: Mapping[str, tuple[str, float, float]]) -> None:
    """Refuses scores that are so low that a graph of noise would be as close.

    Args:
        expected: ``score`` of each head of the model.

    Raises:
        ExportError: The message has the head and its score.
    """
    for name, (measure, value, largest) in expected.items():
        if measure != "abs_rel" and not value > largest:
            raise ExportError(
                f"--data: {name} has {measure} {value:.4f}, too low to compare, since {largest} is allowed as a "
                "difference. Train it further, give the data that it was trained for, or omit --data."
            )


def is_close(found: Mapping[str, Any]) -> bool:
    """Whether a score of ``compare_scores`` is accepted; NaN is not."""
    return bool(abs(found["change"]) <= found["largest_change"])


def scores_differ(scores: Mapping[str, Mapping[str, Any]], title: str) -> ExportError:
    """The error of a graph whose scores differ too much from the model's: the first of these heads, and both scores."""
    name, found = next((name, found) for name, found in scores.items() if not is_close(found))
    return ExportError(
        f"{title}: {name} has {found['measure']} {found['graph']:.4f} on {found['data']}, the model "
        f"{found['model']:.4f}: the difference must be at most {found['largest_change']}. The folder was not written. "
        "Export with another --precision."
    )
