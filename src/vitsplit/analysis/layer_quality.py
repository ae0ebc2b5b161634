"""Quality against the cost of one more head, from K_t = 0 to L: short runs of equal length, and what they suggest."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitsplit.analysis.layer_search import Candidate, TrainTo, fewest_steps

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A candidate after a short run.

    Attributes:
        candidate: The candidate.
        loss: Its mean training loss over the last half of the steps, without the warm-up.
        behind: The mean difference of that loss from the lowest one.
        error: The standard error of that difference over the steps; all candidates have the same batches.
    """

    candidate: Candidate
    loss: float
    behind: float
    error: float

    @property
    def is_near(self) -> bool:
        """Whether the loss is at most a standard error above the lowest one."""
        return self.behind <= self.error

    @property
    def num_tuned_layers(self) -> int:
        """K_t."""
        return int(self.candidate.config.method.num_tuned_layers)


def measure(everyone: Sequence[Candidate], train_to: TrainTo, *, seconds: float) -> list[Quality]:
    """Trains all candidates to the same number of steps, as many as fit in the time.

    The first steps, which contain the warm-up of the learning rate, are always trained.

    Args:
        everyone: The candidates.
        train_to: Trains a candidate up to a number of steps.
        seconds: The time of all runs together.

    Returns:
        One ``Quality`` per candidate, in their order.
    """
    first = fewest_steps(everyone[0])
    for each in everyone:
        each.part = train_to(each.config, each.folder, first)
    each_step = sum(each.part.step_seconds for each in everyone)
    steps = int(seconds / each_step)
    if steps < first:
        logger.warning(
            "%d candidates of %d steps, the fewest to compare, take %.1f minutes: more than --max-minutes",
            len(everyone),
            first,
            first * each_step / 60,
        )
    elif steps > first:
        for each in everyone:
            each.part = train_to(each.config, each.folder, steps)
    best = min(everyone, key=Candidate.loss)
    return [_compared(each, best) for each in everyone]


def advise(found: Sequence[Quality]) -> str:
    """The cheapest head whose loss is near the lowest of those that share blocks, and whether not to share pays.

    Args:
        found: From ``measure``; the highest K_t is L, with which no block is shared.
    """
    num_layers = max(each.num_tuned_layers for each in found)
    sharing = [each for each in found if each.num_tuned_layers < num_layers] or list(found)
    lowest = min(sharing, key=lambda each: each.loss)
    near = [each for each in sharing if each is lowest or _compared(each.candidate, lowest.candidate).is_near]
    chosen = min(near, key=lambda each: each.candidate.head_gmacs)
    text = (
        f"{chosen.candidate.variant.label}: a loss of {chosen.loss:.3f} after {chosen.candidate.steps} steps, and "
        f"{chosen.candidate.head_gmacs:.3g} G multiply-adds for one more head on a shared pass."
    )
    own = [each for each in found if each not in sharing]
    if not own:
        return text
    best = min(own, key=lambda each: each.loss)
    against = _compared(best.candidate, chosen.candidate)
    cost = f"{best.candidate.head_gmacs:.3g} G for every head"
    name = f"A head without shared blocks ({best.candidate.variant.label})"
    if against.behind < -against.error:
        return (
            f"{text} {name} is {-against.behind:.3f} lower at {cost}: prefer it for a single head, or if quality "
            "matters more than the cost of further heads."
        )
    return f"{text} {name} is not better here ({best.loss:.3f}), at {cost}."


def to_json(found: Sequence[Quality]) -> list[dict[str, Any]]:
    """The figures, JSON-ready."""
    return [
        {
            "name": each.candidate.variant.name,
            "settings": dict(each.candidate.variant.settings),
            "steps": each.candidate.steps,
            "loss": round(each.loss, 4),
            "behind": round(each.behind, 4),
            "error": round(each.error, 4),
            "step_seconds": round(each.candidate.part.step_seconds, 4),
            "head_gmacs": round(each.candidate.head_gmacs, 3),
        }
        for each in found
    ]


def _compared(candidate: Candidate, reference: Candidate) -> Quality:
    """A candidate whose loss is compared with that of another one, step by step."""
    differences = [
        own - other for own, other in zip(candidate.counted_losses(), reference.counted_losses(), strict=True)
    ]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return Quality(
        candidate=candidate,
        loss=candidate.loss(),
        behind=statistics.fmean(differences),
        error=spread / math.sqrt(len(differences)),
    )
