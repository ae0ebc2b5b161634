"""Advice on K_t and the prior layers from the CKA of this backbone's layers on these images.

Shapes: L layers of a backbone, K chosen layers, O others, C candidate sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.analysis.cka import CONTRAST, SplitPoint, split_point
from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.layers import uniform_layers
from vitsplit.tasks import TaskConfig

MOST_SETS = 400_000
"""Maximum number of sets of layers for exhaustive search; above it, local search is used."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Recommended layers.

    Attributes:
        num_tuned_layers: K_t.
        prior_layers: The K_p prior layers, in order.
        settings: The same as settings of a run, for the heads that are enabled.
        why_tuned: The reason for K_t.
        why_prior: The reason for the prior layers.
    """

    num_tuned_layers: int
    prior_layers: tuple[int, ...]
    settings: Mapping[str, Any]
    why_tuned: str
    why_prior: str


def advise(cka_LL: NDArray[np.float64], split: SplitConfig, task: TaskConfig) -> Advice:
    """Chooses K_t from the division of the layers into two blocks, and the K_p least similar layers from b on.

    Args:
        cka_LL: The CKA of all pairs of layers.
        split: K_p and b, and the default for K_t if there are no two blocks.
        task: Limits K_t. Fig. 11: segmentation overfits with too many layers; Appendix A.1: detection needs more.

    Raises:
        ConfigError: The backbone has fewer than four layers, or fewer than K_p from b on.
    """
    num_tuned, why_tuned = _tuned(split_point(cka_LL), len(cka_LL), split.num_tuned_layers, task)
    num_prior = len(split.prior_layers) if split.selection == "explicit" else split.num_prior_layers
    layers = least_alike_layers(cka_LL, num_prior, split.first_prior_layer)
    settings: dict[str, Any] = {}
    if split.task_head:
        settings["num_tuned_layers"] = num_tuned
    if split.prior_head:
        settings |= {"selection": "explicit", "prior_layers": layers, "num_prior_layers": num_prior}
    return Advice(
        num_tuned_layers=num_tuned,
        prior_layers=layers,
        settings=settings,
        why_tuned=why_tuned,
        why_prior=_why_prior(cka_LL, layers, split),
    )


def _tuned(point: SplitPoint, num_layers: int, default: int, task: TaskConfig) -> tuple[int, str]:
    """K_t and the reason."""
    first, late = point.first_late_layer, num_layers - point.first_late_layer
    if point.beyond_distance < CONTRAST:
        reason = (
            f"layers change evenly (two blocks explain {point.beyond_distance:.2f} of CKA, less than {CONTRAST:.2f}), "
            f"so the default of {default} is kept"
        )
        return min(default, num_layers), reason
    similar = f"CKA {point.within:.2f} within, {point.across:.2f} across"
    blocks = f"the late block is layers {first} to {num_layers - 1} ({similar})"
    most = max(1, int(num_layers * task.most_tuned))
    if late > most:
        return most, f"{blocks}, {late} layers; at most {most} of {num_layers} for {task.name}"
    return late, f"{blocks}, which the task head copies"


def _why_prior(cka_LL: NDArray[np.float64], layers: tuple[int, ...], split: SplitConfig) -> str:
    names = " ".join(map(str, layers))
    if len(layers) == 1:
        return f"layer {names}: a single layer, the last, as in Eq. 2"
    uniform = uniform_layers(len(cka_LL), len(layers), split.first_prior_layer, split.rounding)
    pairs = len(layers) * (len(layers) - 1) / 2
    return (
        f"layers {names} are least alike from layer {split.first_prior_layer} on: mean CKA "
        f"{summed_cka(cka_LL, layers) / pairs:.2f}; for Eq. 2 ({' '.join(map(str, uniform))}) "
        f"{summed_cka(cka_LL, uniform) / pairs:.2f}"
    )


def least_alike_layers(cka_LL: NDArray[np.float64], count: int, first: int = 0) -> tuple[int, ...]:
    """The ``count`` layers from ``first`` on with the smallest sum of CKA over all pairs.

    Exhaustive search for up to ``MOST_SETS`` sets (any of 12 layers; up to 8 of 24 from the third on);
    otherwise local search by exchanging layers, starting from every layer.

    Args:
        cka_LL: The CKA of all pairs of layers.
        count: K_p. For one layer, the last is returned, as in Eq. 2.
        first: b.

    Raises:
        ConfigError: There are fewer than ``count`` layers.
    """
    num_layers = len(cka_LL)
    if not 0 <= first < num_layers or not 1 <= count <= num_layers - first:
        raise ConfigError(
            f"{count} layers cannot be chosen from layers {first} to {num_layers - 1}. Reduce num_prior_layers or "
            "first_prior_layer."
        )
    if count == 1:
        return (num_layers - 1,)
    candidates = list(range(first, num_layers))
    if math.comb(len(candidates), count) <= MOST_SETS:
        return _best_of_all(cka_LL, candidates, count)
    return _search(cka_LL, candidates, count)


def summed_cka(cka_LL: NDArray[np.float64], layers: tuple[int, ...]) -> float:
    """The sum of CKA over all pairs of layers."""
    return sum(float(cka_LL[one, other]) for one, other in itertools.combinations(layers, 2))


def _best_of_all(cka_LL: NDArray[np.float64], candidates: list[int], count: int) -> tuple[int, ...]:
    sets_CK = np.array(list(itertools.combinations(candidates, count)))
    sums_C = np.zeros(len(sets_CK))
    for one, other in itertools.combinations(range(count), 2):
        sums_C += cka_LL[sets_CK[:, one], sets_CK[:, other]]
    return tuple(sets_CK[int(sums_C.argmin())].tolist())


def _search(cka_LL: NDArray[np.float64], candidates: list[int], count: int) -> tuple[int, ...]:
    """The best local optimum over starts from every layer."""
    found = [_exchange(cka_LL, candidates, _grow(cka_LL, candidates, count, start)) for start in candidates]
    return min(found, key=lambda layers: summed_cka(cka_LL, layers))


def _grow(cka_LL: NDArray[np.float64], candidates: list[int], count: int, start: int) -> tuple[int, ...]:
    """Greedily adds the layer least similar to those chosen so far."""
    chosen = [start]
    while len(chosen) < count:
        left = [layer for layer in candidates if layer not in chosen]
        chosen.append(left[int(cka_LL[left][:, chosen].sum(1).argmin())])
    return tuple(sorted(chosen))


def _exchange(cka_LL: NDArray[np.float64], candidates: list[int], chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Repeats the exchange of one layer that reduces the sum most, until none does."""
    while True:
        inside, outside = list(chosen), [layer for layer in candidates if layer not in chosen]
        alike_L = cka_LL[:, inside].sum(1)
        # Change of the sum: similarity of the new layer to the rest, minus that of the removed layer.
        comes_KO = alike_L[outside][None, :] - cka_LL[np.ix_(inside, outside)]
        goes_K = alike_L[inside] - cka_LL[inside, inside]
        change_KO = comes_KO - goes_K[:, None]
        row, column = np.unravel_index(int(change_KO.argmin()), change_KO.shape)
        if change_KO[row, column] > -1e-12:
            return chosen
        chosen = tuple(sorted({*inside, outside[column]} - {inside[row]}))
