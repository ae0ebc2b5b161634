"""The sparse gate instead of Eq. 2 (Appendix B, Tables 8 and 9)."""

from __future__ import annotations

from dataclasses import replace

from vitsplit.engine.config import TrainConfig

GATE_MAPS = 4
"""K_p of every gate in the release: four mixtures, each of at most four layers."""


def with_gate(config: TrainConfig) -> TrainConfig:
    """The recipe with learned prior layers: all L layers in training, the selected ones at inference."""
    split = replace(config.split, selection="gate", num_prior_layers=GATE_MAPS)
    return config.change(name=f"{config.name}-gate", split=split)
