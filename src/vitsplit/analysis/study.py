"""Results of a study: the scores of each variant over seeds, and its cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitsplit.analysis.cost import gmacs, shape_model
from vitsplit.analysis.runs import Outcome, Trial, without_seed
from vitsplit.analysis.variants import Variant
from vitsplit.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a configuration, computed from shapes.

    Attributes:
        parameters: Number of trainable parameters.
        gmacs: Multiply-adds per prediction at the crop size, in 10^9.
        head_gmacs: The part of them that is not shared with other heads: that of one more head on a shared pass.
    """

    parameters: int
    gmacs: float
    head_gmacs: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant.

    Attributes:
        variant: The variant.
        config: Its configuration, independent of the seed.
        cost: Its cost; the mean of its runs if they chose their layers.
        by_seed: Seed to outcome, for finished runs.
    """

    variant: Variant
    config: TrainConfig
    cost: Cost
    by_seed: Mapping[int, Outcome]

    @property
    def scores(self) -> list[float]:
        """The scores of finished runs."""
        return [outcome.score for outcome in self.by_seed.values()]

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN without runs."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the scores; None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def seconds(self) -> float:
        """Mean training time in seconds; NaN without runs."""
        return statistics.fmean([each.seconds for each in self.by_seed.values()]) if self.by_seed else math.nan


class Costs:
    """Cached costs of configurations.

    Args:
        description: The task description (``Task.describe``).
        count: The function to compute a cost; None: ``count_cost``.
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        count: Callable[[TrainConfig, Mapping[str, Any]], Cost] | None = None,
    ) -> None:
        self._description = description
        self._count = count or count_cost
        self._known: list[tuple[TrainConfig, Cost]] = []

    def of(self, trial: Trial) -> Cost:
        """The cost of a run, independent of its seed."""
        config = without_seed(trial)
        for known, cost in self._known:
            if known == config:
                return cost
        cost = self._count(config, self._description)
        self._known.append((config, cost))
        return cost


def count_cost(config: TrainConfig, description: Mapping[str, Any] | None) -> Cost:
    """Cost from shapes, for an image of the crop size. A gate is assumed to keep the last layer.

    Without a description, the classes are those of the configuration's data set.
    """
    _, model = shape_model(config, description=description)
    height, width = config.task.crop_size
    cost = gmacs(config, (height, width), description=description)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        gmacs=cost["total"],
        head_gmacs=cost["head"],
    )


def rows(trials: Sequence[Trial], outcomes: Sequence[Outcome], costs: Costs) -> list[Row]:
    """One row per variant, in the order of the trials."""
    found: dict[str, Row] = {}
    for trial in trials:
        name = trial.variant.name
        if name not in found:
            by_seed = {each.trial.seed: each for each in outcomes if each.trial.variant.name == name}
            found[name] = Row(
                variant=trial.variant,
                config=without_seed(trial),
                cost=_mean_cost([costs.of(each.trial) for each in by_seed.values()] or [costs.of(trial)]),
                by_seed=dict(sorted(by_seed.items())),
            )
    return list(found.values())


def _mean_cost(costs: Sequence[Cost]) -> Cost:
    return Cost(
        parameters=round(statistics.fmean(each.parameters for each in costs)),
        gmacs=statistics.fmean(each.gmacs for each in costs),
        head_gmacs=statistics.fmean(each.head_gmacs for each in costs),
    )


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """The results, JSON-ready: a list of variants, each with its runs."""
    return {
        "score": next((each.score_name for row in rows for each in row.by_seed.values()), None),
        "variants": [
            {
                "name": row.variant.name,
                "title": row.variant.label,
                "settings": {name: _plain(value) for name, value in row.variant.settings.items()},
                "parameters": row.cost.parameters,
                "gmacs": round(row.cost.gmacs, 3),
                "head_gmacs": round(row.cost.head_gmacs, 3),
                "mean": row.mean,
                "spread": row.spread,
                "seconds": row.seconds,
                "runs": [
                    {
                        "seed": seed,
                        "folder": str(each.trial.folder),
                        "score": each.score,
                        "best_score": each.best_score,
                        "steps": each.steps,
                        "layers": each.chosen_layers,
                        "seconds": each.seconds,
                        "metrics": {
                            name: value for name, value in each.metrics.items() if isinstance(value, int | float)
                        },
                    }
                    for seed, each in row.by_seed.items()
                ],
            }
            for row in rows
        ],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
