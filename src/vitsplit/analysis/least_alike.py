"""The layers that are least alike: those between which CKA adds up to least.

Shapes: L layers, K chosen layers, O others, C candidate sets.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from vitsplit.errors import ConfigError

MOST_SETS = 400_000
"""Sets of layers that are all looked at; of more, a good one is searched for."""


def least_alike_layers(cka_LL: NDArray[np.float64], count: int, first: int = 0) -> tuple[int, ...]:
    """The ``count`` layers from ``first`` on whose CKA, summed over all pairs of them, is least.

    The best of all sets where there are at most ``MOST_SETS`` (any of 12 layers; up to 8 of 24 from the third on), the
    first of equals; else the best of what exchanging one layer after another ends at, begun from every layer.

    Args:
        cka_LL: The CKA of all pairs of layers.
        count: K_p. Of one layer nothing can be said; the last is taken, as Eq. 2 does.
        first: b.

    Raises:
        ConfigError: There are fewer than ``count`` layers.
    """
    num_layers = len(cka_LL)
    if not 0 <= first < num_layers or not 1 <= count <= num_layers - first:
        raise ConfigError(
            f"{count} layers cannot be chosen from layers {first} to {num_layers - 1}. Lower num_prior_layers or "
            "first_prior_layer."
        )
    if count == 1:
        return (num_layers - 1,)
    candidates = list(range(first, num_layers))
    if math.comb(len(candidates), count) <= MOST_SETS:
        return _best_of_all(cka_LL, candidates, count)
    return _search(cka_LL, candidates, count)


def summed_cka(cka_LL: NDArray[np.float64], layers: tuple[int, ...]) -> float:
    """The sum over all pairs of layers."""
    return sum(float(cka_LL[one, other]) for one, other in itertools.combinations(layers, 2))


def _best_of_all(cka_LL: NDArray[np.float64], candidates: list[int], count: int) -> tuple[int, ...]:
    sets_CK = np.array(list(itertools.combinations(candidates, count)))
    sums_C = np.zeros(len(sets_CK))
    for one, other in itertools.combinations(range(count), 2):
        sums_C += cka_LL[sets_CK[:, one], sets_CK[:, other]]
    return tuple(sets_CK[int(sums_C.argmin())].tolist())


def _search(cka_LL: NDArray[np.float64], candidates: list[int], count: int) -> tuple[int, ...]:
    """The best of what exchanges end at, begun once from every layer."""
    found = [_exchange(cka_LL, candidates, _grow(cka_LL, candidates, count, start)) for start in candidates]
    return min(found, key=lambda layers: summed_cka(cka_LL, layers))


def _grow(cka_LL: NDArray[np.float64], candidates: list[int], count: int, start: int) -> tuple[int, ...]:
    """From one layer on always the one that is least alike those that are there."""
    chosen = [start]
    while len(chosen) < count:
        left = [layer for layer in candidates if layer not in chosen]
        chosen.append(left[int(cka_LL[left][:, chosen].sum(1).argmin())])
    return tuple(sorted(chosen))


def _exchange(cka_LL: NDArray[np.float64], candidates: list[int], chosen: tuple[int, ...]) -> tuple[int, ...]:
    """Exchanges the one layer for another that lowers the sum most, until none does."""
    while True:
        inside, outside = list(chosen), [layer for layer in candidates if layer not in chosen]
        alike_L = cka_LL[:, inside].sum(1)
        # What comes in, without the layer that goes, less what goes, without itself.
        comes_KO = alike_L[outside][None, :] - cka_LL[np.ix_(inside, outside)]
        goes_K = alike_L[inside] - cka_LL[inside, inside]
        change_KO = comes_KO - goes_K[:, None]
        row, column = np.unravel_index(int(change_KO.argmin()), change_KO.shape)
        if change_KO[row, column] > -1e-12:
            return chosen
        chosen = tuple(sorted({*inside, outside[column]} - {inside[row]}))
