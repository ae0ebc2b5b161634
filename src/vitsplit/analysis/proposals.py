"""Proposals for K_t and prior layers, each with a reason and cost.

Shapes: L layers, J columns of a gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitsplit.analysis.advice import advise
from vitsplit.analysis.study import Cost, count_cost
from vitsplit.bundle import read_card, read_weights
from vitsplit.engine.override import override
from vitsplit.errors import BundleError, ConfigError
from vitsplit.methods.split.config import split_settings
from vitsplit.methods.split.gate import SparseGate
from vitsplit.methods.split.layers import select_layers
from vitsplit.train_config import TrainConfig

GATE_SCORES = "head.gate.scores_LJ"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One proposal.

    Attributes:
        name: Its origin.
        why: The reason.
        num_tuned_layers: K_t.
        prior_layers: The prior layers.
        settings: The settings of a run.
        cost: The cost.
    """

    name: str
    why: str
    num_tuned_layers: int
    prior_layers: tuple[int, ...]
    settings: Mapping[str, Any]
    cost: Cost

    @property
    def flags(self) -> str:
        """The settings as flags of ``vitsplit train``."""
        return " ".join(
            f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in self.settings.items()
        )


def propose(
    config: TrainConfig,
    cka_LL: NDArray[np.float64],
    *,
    description: Mapping[str, Any] | None = None,
    gate_LJ: NDArray[np.float64] | None = None,
) -> list[Proposal]:
    """Proposals from CKA, the configuration, the rule of thumb of Appendix A.1, and optionally a gate.

    Args:
        config: K_p, b, the task and its crop; its own layers are one of the proposals.
        cka_LL: The CKA of all pairs of layers.
        description: The task description, for the cost; None: that of the configuration's data set.
        gate_LJ: Weights of a trained gate.

    Raises:
        ConfigError: The backbone has too few layers.
    """
    num_layers = len(cka_LL)
    split = split_settings(config.method, "a proposal of layers")
    found = advise(cka_LL, split, config.task)
    choices: dict[str, tuple[str, Mapping[str, Any]]] = {
        "least alike": (f"{found.why_tuned}; {found.why_prior}", found.settings)
    }
    if split.selection != "gate":
        own = {
            "num_tuned_layers": split.num_tuned_layers,
            "selection": split.selection,
            "num_prior_layers": split.num_prior_layers,
        } | ({"prior_layers": split.prior_layers} if split.selection == "explicit" else {})
        choices["the recipe's"] = (f"the layers of {config.name}, independent of backbone and images", own)
    quarter = max(1, round(num_layers / 4))
    uniform = {"num_tuned_layers": quarter, "selection": "uniform", "num_prior_layers": split.num_prior_layers}
    if all(uniform != settings for _, settings in choices.values()):
        choices["rule of thumb"] = (
            "Appendix A.1: a sixth to a quarter of the layers for dense tasks (here a quarter), evenly spaced prior "
            "layers (Eq. 2)",
            uniform,
        )
    if gate_LJ is not None:
        share_L = gate_LJ.sum(1) / gate_LJ.shape[1]
        strongest = np.argsort(-share_L, kind="stable")[: split.num_prior_layers]
        layers = tuple(sorted(int(layer) for layer in strongest))
        why = f"these layers have {share_L[list(layers)].sum():.0%} of the gate weights; the gate keeps " + ", ".join(
            f"{layer} ({share_L[layer]:.0%})" for layer in np.flatnonzero(share_L)
        )
        gated = {"num_tuned_layers": split.num_tuned_layers, "selection": "explicit", "prior_layers": layers}
        choices["gate's readout"] = (why, gated | {"num_prior_layers": len(layers)})
    return [
        _proposal(name, why, settings, config, num_layers, description) for name, (why, settings) in choices.items()
    ]


def gate_weights(run: Path) -> NDArray[np.float64]:
    """The weights of a trained gate, ``(L, J)``; columns sum to one.

    Raises:
        BundleError: The run has no readable bundle.
        ConfigError: It was trained without a gate.
    """
    card = read_card(run)
    split = split_settings(card.config.method, str(run))
    if split.selection != "gate":
        raise ConfigError(f"{run} was trained with --selection {split.selection}, not with a gate.")
    if card.delta:
        raise ConfigError(f"{run} stores differences to its backbone (--delta). Give the run that was pushed.")
    state = read_weights(run)
    if GATE_SCORES not in state:
        raise BundleError(f"{run} has no gate scores. Copy the bundle again from where it was trained.")
    scores_LJ = state[GATE_SCORES]
    num_layers, num_maps = scores_LJ.shape
    gate = SparseGate(num_layers, num_maps, split.gate_temperature)
    gate.load_state_dict({"scores_LJ": scores_LJ})
    with torch.no_grad():
        weights_LJ: NDArray[np.float64] = gate.weights().double().numpy()
    return weights_LJ


def _proposal(
    name: str,
    why: str,
    settings: Mapping[str, Any],
    config: TrainConfig,
    num_layers: int,
    description: Mapping[str, Any] | None,
) -> Proposal:
    split = split_settings(config.method, "a proposal of layers")
    bare = config.change(method=replace(split, selection="uniform", prior_layers=()))
    changed = override(bare, settings)
    proposed = split_settings(changed.method, "a proposal of layers")
    layers = select_layers(proposed, num_layers)
    return Proposal(
        name=name,
        why=why,
        num_tuned_layers=proposed.num_tuned_layers,
        prior_layers=layers,
        settings=settings,
        cost=count_cost(changed, description),
    )
