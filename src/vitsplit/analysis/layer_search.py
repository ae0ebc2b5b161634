"""``--layers auto``: chooses K_t and the form of the task head by short training runs (successive halving).

Candidates are ordinary runs with the same seed, and so with the same batches, on the user's training data. In every
round the remaining ones are trained to the same number of steps, and the half with the lower loss remains; the next
round is twice as long. The last one is continued by the run itself. The first round is longer than a linear warm-up of
the learning rate, in which few tuned blocks learn faster than many, and whose losses do not count; and as long as all
rounds fit in the budget.

A candidate whose steps take longer has fewer steps in the same time. Its loss is therefore compared at the number of
steps that it will have: by the learning curve of the candidates, which falls with the logarithm of the steps.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitsplit.analysis.cost import step_gmacs
from vitsplit.analysis.variants import Variant
from vitsplit.engine.optim import warmup_length
from vitsplit.engine.override import override
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import split_settings
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

SHARE = 0.2
"""The part of a run's time, or of its steps, that all candidates together may take."""
FIRST_STEPS = 10
"""The fewest steps of the first round."""


@dataclass(frozen=True)
class Part:
    """The beginning of a run.

    Attributes:
        losses: The training loss of every step.
        seconds: The time of every step.
        backbone_seconds: The median time of the frozen backbone in a step, which cached features save; 0: no cache.
    """

    losses: Sequence[float]
    seconds: Sequence[float]
    backbone_seconds: float = 0.0

    @property
    def step_seconds(self) -> float:
        """The median time of a step, without the first ones, which include warm-up."""
        return self.seconds_from(0)

    def seconds_from(self, step: int) -> float:
        """The median time of the steps from one on, likewise."""
        return statistics.median(self.seconds[max(step, len(self.seconds) // 4) :])


TrainTo = Callable[[TrainConfig, Path, int], Part]
"""Trains a configuration in a run folder up to a number of steps, and resumes it if the folder holds the run."""


@dataclass
class Candidate:
    """A configuration in the search.

    Attributes:
        variant: Its name and settings.
        config: Its configuration.
        head_gmacs: Multiply-adds of one more head, in 10^9 per image of the crop size.
        step_gmacs: Multiply-adds of a training step, likewise.
        folder: Its run folder.
        part: What has been trained of it so far.
    """

    variant: Variant
    config: TrainConfig
    head_gmacs: float
    step_gmacs: float
    folder: Path
    part: Part = field(default_factory=lambda: Part([], []))

    @property
    def steps(self) -> int:
        """The number of steps so far."""
        return len(self.part.losses)

    @property
    def warmup(self) -> int:
        """The steps of its warm-up."""
        return warmup_length(self.config.loop.steps, self.config.optim)

    @property
    def first_counted(self) -> int:
        """The first of the steps whose losses count: those of the last half, without those of the warm-up."""
        return max(self.steps // 2, self.warmup)

    def counted_losses(self) -> Sequence[float]:
        """The losses that count."""
        return self.part.losses[self.first_counted :]

    def loss(self) -> float:
        """The mean of ``counted_losses``."""
        return statistics.fmean(self.counted_losses())

    def fall(self) -> float:
        """How much the loss falls with a doubling of the steps: from the second quarter to those that count."""
        earlier = self.part.losses[self.steps // 4 : self.steps // 2]
        doublings = math.log2((self.first_counted + self.steps) / (self.steps // 4 + self.steps // 2))
        return (statistics.fmean(earlier) - self.loss()) / doublings


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The result of a search.

    Attributes:
        settings: The chosen settings.
        winner: The chosen candidate, which the run continues.
        evidence: JSON-ready: the rounds, and the losses, cost and reason of every candidate.
    """

    settings: Mapping[str, Any]
    winner: Candidate
    evidence: Mapping[str, Any]


def candidates(config: TrainConfig, num_layers: int, folder: Path, num_classes: int | None) -> list[Candidate]:
    """The candidates for a single head, see ``variants``. Those that the backbone does not support are logged.

    Args:
        config: The configuration.
        num_layers: L.
        folder: Folder for their runs.
        num_classes: K, for the cost; None: that of the configuration's data set.

    Raises:
        ConfigError: The configuration itself is invalid.
    """
    found: list[Candidate] = []
    for variant in variants(config, num_layers):
        changed = override(config, variant.settings)
        try:
            cost = step_gmacs(changed, changed.task.crop_size, num_classes=num_classes)
        except ConfigError as error:
            if not found:  # the configuration itself, which comes first
                raise
            logger.warning("layers auto: %s is not compared: %s", variant.label, error)
            continue
        if any(changed == each.config for each in found):
            continue  # such as LoRA alone, if the configuration has no prior head
        found.append(Candidate(variant, changed, cost["trained"], cost["step"], folder / variant.name))
    return found


def variants(config: TrainConfig, num_layers: int) -> list[Variant]:
    """The settings of the candidates, in the order in which they are kept if the budget does not allow all of them.

    The configuration itself; low-rank updates of all blocks alone (LoRA), which share nothing; then fewer and more
    tuned blocks, K_t from 0 to L; and the other tuning of the copied blocks at its own K_t.

    Raises:
        ConfigError: The method has no tuned blocks.
    """
    split = split_settings(config.method, "--layers auto")
    if not split.task_head:
        raise ConfigError("--layers auto chooses the blocks of the task head: omit --no-task-head, or --layers auto.")
    own = {"num_tuned_layers": min(split.num_tuned_layers, num_layers)}
    quarters = [max(1, round(share * num_layers)) for share in (0.25, 0.75, 0.5, 1.0)]
    other = {**own, "tune_blocks": "full" if split.tune_blocks == "lora" else "lora"}
    alone = {"num_tuned_layers": num_layers, "tune_blocks": "lora", "prior_head": False, "fusion": False}
    settings: list[dict[str, Any]] = [own, alone, *({"num_tuned_layers": count} for count in (*quarters, 0)), other]
    found: dict[str, Variant] = {}
    for each in settings:
        form = each.get("tune_blocks", split.tune_blocks)
        name = f"kt{each['num_tuned_layers']}" + (f"-{form}" if each["num_tuned_layers"] else "")
        name += "-alone" if each is alone else ""
        title = f"K_t = {each['num_tuned_layers']}" + (f", {form}" if each["num_tuned_layers"] else "")
        title += ", no prior head" if each is alone else ""
        found.setdefault(name, Variant(name=name, settings=each, title=title))
    return list(found.values())


def search(
    everyone: Sequence[Candidate],
    train_to: TrainTo,
    *,
    steps: int,
    seconds: float | None = None,
    max_head_gmacs: float | None = None,
    first_views: int = 0,
) -> Choice:
    """Chooses a candidate.

    Args:
        everyone: The candidates, the first is kept without a comparison.
        train_to: Trains a candidate up to a number of steps.
        steps: The number of steps of the run, which determines the budget without ``seconds``.
        seconds: The time of the whole run, search included; None: unlimited.
        max_head_gmacs: The limit on ``Candidate.head_gmacs``; None: no limit.
        first_views: See ``steps_for``.

    Raises:
        ConfigError: No candidate is within the limit.
    """
    allowed = [each for each in everyone if max_head_gmacs is None or each.head_gmacs <= max_head_gmacs]
    if not allowed:
        least = min(each.head_gmacs for each in everyone)
        raise ConfigError(
            f"--max-head-gmacs {max_head_gmacs:g}: a head with K_t = 0 takes {least:.2f} G at this crop size. Increase "
            "the limit."
        )
    budget = _Budget(steps, seconds, first_views)
    first = fewest_steps(allowed[0])
    remaining = _affordable(allowed, budget, train_to, first)
    target, rounds = budget.longest(remaining, first), []
    while len(remaining) > 1 and budget.allows(remaining, target):
        for each in remaining:
            budget.spend(each, target, train_to)
        losses = _comparable_losses(remaining, budget)
        remaining.sort(key=lambda each: losses[each.variant.name])
        rounds.append({"steps": target, "losses": {name: round(loss, 4) for name, loss in losses.items()}})
        logger.info(
            "layers auto, %d steps: %s",
            target,
            "; ".join(f"{each.variant.label}: loss {losses[each.variant.name]:.3f}" for each in remaining),
        )
        remaining = remaining[: math.ceil(len(remaining) / 2)]
        target *= 2
    winner = remaining[0]
    evidence = {
        "chosen": winner.variant.name,
        "rounds": rounds,
        "candidates": [
            {
                "name": each.variant.name,
                "settings": dict(each.variant.settings),
                "steps": each.steps,
                "step_seconds": round(each.part.step_seconds, 4) if each.steps else None,
                "head_gmacs": round(each.head_gmacs, 3),
            }
            for each in allowed
        ],
    }
    logger.info(
        "layers auto: %s, which costs %.2f G multiply-adds per image on a shared pass (K_t = 0: %.2f G)",
        winner.variant.label,
        winner.head_gmacs,
        min(each.head_gmacs for each in everyone),
    )
    if len(allowed) > 1 and not rounds:
        logger.warning(
            "layers auto: a fifth of the run is too short for a comparison (two candidates, %d steps each), so the "
            "recipe's layers are used. Increase %s.",
            first,
            f"--max-minutes, to {budget.minutes(allowed[:2], first)} or more for each head"
            if seconds is not None
            else f"--steps, to {math.ceil(2 * first / SHARE)} or more",
        )
    return Choice(settings=winner.variant.settings, winner=winner, evidence=evidence)


def fewest_steps(candidate: Candidate) -> int:
    """The fewest steps after which candidates are compared: a third more than the warm-up."""
    return max(FIRST_STEPS, math.ceil(4 / 3 * candidate.warmup))


def steps_for(part: Part, seconds: float, first_views: int) -> int:
    """The number of steps of a run, including those of its beginning, that fit in the remaining time.

    Args:
        part: The beginning of the run.
        seconds: The remaining time.
        first_views: Number of first steps whose features are not cached yet; ignored without a cache.
    """
    done, left = len(part.losses), max(0.0, seconds)
    if not part.backbone_seconds:
        return done + int(left / part.step_seconds)
    if done > first_views:  # the last ones have cached features
        return done + int(left / part.seconds_from(first_views))
    each, uncached = part.step_seconds, first_views - done
    if left <= uncached * each:
        return done + int(left / each)
    later = max(each - part.backbone_seconds, each / 10)
    return done + uncached + int((left - uncached * each) / later)


class _Budget:
    """The time, or the number of steps, that the candidates may take.

    Args:
        steps: The steps of the whole run.
        seconds: The time of the whole run; None: steps count instead.
        first_views: See ``steps_for``.
    """

    def __init__(self, steps: int, seconds: float | None, first_views: int) -> None:
        self.steps = steps
        self.seconds = seconds
        self.first_views = first_views
        self.left = SHARE * (steps if seconds is None else seconds)
        self._reference: Candidate | None = None

    def cost(self, candidate: Candidate, target: int) -> float:
        """The cost of training a candidate up to a step."""
        steps = max(0, target - candidate.steps)
        if self.seconds is None:
            return steps
        if candidate.steps:
            return steps * candidate.part.step_seconds
        reference = self._reference
        assert reference is not None, "the first candidate has been trained"
        return steps * reference.part.step_seconds * candidate.step_gmacs / reference.step_gmacs

    def of_rounds(self, candidates: Sequence[Candidate], first: int, most: float = math.inf) -> float:
        """The cost of at most so many rounds, the first of which has ``first`` steps; at worst, the dearest remain."""
        remaining, target, total, rounds = list(candidates), first, 0.0, 0
        while len(remaining) > 1 and rounds < most:
            total += sum(
                self.cost(each, target) - (self.cost(each, target // 2) if rounds else 0) for each in remaining
            )
            remaining.sort(key=lambda each: self.cost(each, 2 * target) - self.cost(each, target), reverse=True)
            remaining = remaining[: math.ceil(len(remaining) / 2)]
            target, rounds = 2 * target, rounds + 1
        return total

    def longest(self, candidates: Sequence[Candidate], first: int) -> int:
        """The most steps of the first round, at least ``first``, with which all rounds fit in the budget and a run."""
        if len(candidates) < 2:
            return first
        low, high = first, max(first, self.steps // 2 ** math.ceil(math.log2(len(candidates))))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.of_rounds(candidates, middle) <= self.left else (low, middle - 1)
        return low

    def minutes(self, candidates: Sequence[Candidate], first: int) -> int:
        """The minutes of a run in a fifth of which candidates can be compared."""
        taken = SHARE * (self.seconds or 0.0) - self.left
        return math.ceil((taken + self.of_rounds(candidates, first, 1)) / SHARE / 60)

    def allows(self, candidates: Sequence[Candidate], target: int) -> bool:
        """Whether all candidates can be trained up to a step."""
        return sum(self.cost(each, target) for each in candidates) <= self.left

    def spend(self, candidate: Candidate, target: int, train_to: TrainTo) -> None:
        """Trains a candidate up to a step."""
        began, before = time.perf_counter(), candidate.steps
        candidate.part = train_to(candidate.config, candidate.folder, target)
        taken = time.perf_counter() - began
        self.left -= candidate.steps - before if self.seconds is None else taken
        self._reference = self._reference or candidate

    def planned_steps(self, candidate: Candidate) -> float:
        """The steps that a candidate will have at the end."""
        return (
            self.steps
            if self.seconds is None
            else steps_for(candidate.part, self.seconds * (1 - SHARE), self.first_views)
        )


def _affordable(candidates: list[Candidate], budget: _Budget, train_to: TrainTo, first: int) -> list[Candidate]:
    """As many of the first candidates as can have two rounds, or one if there are two of them.

    With a budget of time, the first one is trained to time its steps.
    """
    if budget.seconds is not None:
        budget.spend(candidates[0], min(first, FIRST_STEPS), train_to)
    kept = list(candidates)
    while len(kept) > 1 and budget.of_rounds(kept, first, 2) > budget.left:
        kept.pop()
    if len(kept) < len(candidates):
        logger.info(
            "layers auto: time for %d of %d candidates; a fifth of the run is used for the choice",
            len(kept),
            len(candidates),
        )
    return kept


def _comparable_losses(candidates: Sequence[Candidate], budget: _Budget) -> dict[str, float]:
    """``Candidate.loss``, plus what a candidate loses by having fewer steps than the fastest.

    The loss is taken to fall by the same amount with every doubling of the steps: the mean ``Candidate.fall``.
    """
    per_doubling = max(0.0, statistics.fmean(each.fall() for each in candidates))
    planned = {each.variant.name: budget.planned_steps(each) for each in candidates}
    most = max(planned.values())
    return {
        each.variant.name: each.loss() + per_doubling * math.log2(most / planned[each.variant.name])
        for each in candidates
    }
