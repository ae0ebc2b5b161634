"""Advice on K_t and the prior layers from the CKA of this backbone's layers on these images.

Shapes: L layers of a backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitsplit.analysis.cka import SplitPoint, split_point
from vitsplit.analysis.cka_report import CONTRAST
from vitsplit.analysis.least_alike import least_alike_layers, summed_cka
from vitsplit.engine.config import SplitConfig
from vitsplit.methods.split.layers import uniform_layers

MOST_TUNED = {"detection": 1.0}
"""The greatest share of the layers that is proposed for the task head, by task; ``MOST_TUNED_ELSEWHERE`` for others.

Fig. 11: with more copied blocks than needed a segmentation head overfits; Appendix A.1: detection needs more."""
MOST_TUNED_ELSEWHERE = 0.5


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What the images say about the layers.

    Attributes:
        num_tuned_layers: K_t.
        prior_layers: The K_p layers to read, in order.
        settings: The same as settings of a run, without what is turned off there.
        why_tuned: Why so many, in a sentence.
        why_prior: Why these, in a sentence.
    """

    num_tuned_layers: int
    prior_layers: tuple[int, ...]
    settings: Mapping[str, Any]
    why_tuned: str
    why_prior: str


def advise(cka_LL: NDArray[np.float64], split: SplitConfig, task: str) -> Advice:
    """K_t from where the layers divide in two, and the K_p layers from b on that are least alike.

    Args:
        cka_LL: The CKA of all pairs of layers.
        split: K_p and b; K_t too, where the layers do not divide.
        task: The task's name: how many layers it may be good to copy.

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


def _tuned(point: SplitPoint, num_layers: int, asked: int, task: str) -> tuple[int, str]:
    """K_t and why."""
    first, late = point.first_late_layer, num_layers - point.first_late_layer
    if point.beyond_distance < CONTRAST:
        said = (
            f"layers change evenly (two blocks explain {point.beyond_distance:.2f} of CKA, less than {CONTRAST:.2f}), "
            f"so nothing here speaks for another K_t than {asked}"
        )
        return min(asked, num_layers), said
    similar = f"CKA {point.within:.2f} within, {point.across:.2f} across"
    blocks = f"the late block is layers {first} to {num_layers - 1} ({similar})"
    most = max(1, int(num_layers * MOST_TUNED.get(task, MOST_TUNED_ELSEWHERE)))
    if late > most:
        return most, f"{blocks}, {late} layers; for {task} no more than {most} of {num_layers} are proposed"
    return late, f"{blocks}, and a task head copies what comes after the division"


def _why_prior(cka_LL: NDArray[np.float64], layers: tuple[int, ...], split: SplitConfig) -> str:
    spelled = " ".join(map(str, layers))
    if len(layers) == 1:
        return f"layer {spelled}: of one layer nothing can be compared, and the last is taken as Eq. 2 does"
    uniform = uniform_layers(len(cka_LL), len(layers), split.first_prior_layer, split.rounding)
    pairs = len(layers) * (len(layers) - 1) / 2
    return (
        f"layers {spelled} are least alike from layer {split.first_prior_layer} on: mean CKA "
        f"{summed_cka(cka_LL, layers) / pairs:.2f}, that of Eq. 2's ({' '.join(map(str, uniform))}) is "
        f"{summed_cka(cka_LL, uniform) / pairs:.2f}"
    )
