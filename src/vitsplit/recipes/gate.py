"""The sparse gate instead of Eq. 2 (Appendix B, Tables 8 and 9)."""

from __future__ import annotations

from dataclasses import replace

from vitsplit.methods.split.config import split_settings
from vitsplit.train_config import TrainConfig

GATE_MAPS = 4
"""K_p of every gate in the release: four mixtures, each of at most four layers."""


def with_gate(config: TrainConfig) -> TrainConfig:
    """The recipe with learned layers: all L layers in training, those that the gate keeps at inference."""
    method = replace(split_settings(config.method, "a gate"), selection="gate", num_prior_layers=GATE_MAPS)
    return config.change(name=f"{config.name}-gate", method=method)
