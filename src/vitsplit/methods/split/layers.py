"""Selection of the frozen layers for the prior head (Section 3.2, Eq. 2). Layer indices are 0-based."""

from __future__ import annotations

import itertools
from typing import Literal

from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig


def uniform_layers(
    num_layers: int, num_prior_layers: int, first_prior_layer: int, rounding: Literal["round", "int"] = "round"
) -> tuple[int, ...]:
    """Eq. 2: ``S = {b + round(i * (L - b - 1) / (K_p - 1)) | i = 0 .. K_p - 1}``.

    Args:
        num_layers: L.
        num_prior_layers: K_p. For 1, where the equation divides by zero, the last layer is used.
        first_prior_layer: b.
        rounding: ``round`` (the paper; ties to even) or ``int`` (the release truncates).

    Raises:
        ConfigError: Fewer than K_p layers lie between b and L.
    """
    available = num_layers - first_prior_layer
    if not 1 <= num_prior_layers <= available or first_prior_layer < 0:
        raise ConfigError(
            f"{num_prior_layers} prior layers cannot be taken from the {max(available, 0)} layers "
            f"{first_prior_layer}..{num_layers - 1} of a backbone of {num_layers}: K_p must lie in 1..L - b. "
            "Lower num_prior_layers or first_prior_layer."
        )
    if num_prior_layers == 1:
        return (num_layers - 1,)
    # Multiply before dividing, so that exact halves stay exact.
    steps = [index * (available - 1) / (num_prior_layers - 1) for index in range(num_prior_layers)]
    return tuple(first_prior_layer + (round(step) if rounding == "round" else int(step)) for step in steps)


def last_layers(num_layers: int, num_prior_layers: int) -> tuple[int, ...]:
    """The last K_p layers (compared in Table 7, and used in the release for some data sets).

    Raises:
        ConfigError: K_p is not in 1..L.
    """
    if not 1 <= num_prior_layers <= num_layers:
        raise ConfigError(
            f"The last {num_prior_layers} of {num_layers} layers cannot be taken: num_prior_layers (K_p) must lie in "
            f"1..{num_layers}. To train without a prior head use --no-prior-head."
        )
    return tuple(range(num_layers - num_prior_layers, num_layers))


def explicit_layers(num_layers: int, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Checks and returns explicitly given layers.

    Raises:
        ConfigError: The set is empty, not strictly increasing, or out of range.
    """
    if not layers:
        raise ConfigError("selection 'explicit' needs prior_layers, such as --prior-layers 2 5 8 11.")
    if any(not 0 <= layer < num_layers for layer in layers):
        raise ConfigError(
            f"prior_layers {list(layers)} exceed the range 0..{num_layers - 1} of a backbone of {num_layers}."
        )
    if any(after <= before for before, after in itertools.pairwise(layers)):
        raise ConfigError(f"prior_layers {list(layers)} must be strictly increasing.")
    return layers


def select_layers(config: SplitConfig, num_layers: int) -> tuple[int, ...]:
    """The layers for the prior head: S, or all L for the gate; empty without a prior head.

    Raises:
        ConfigError: The settings do not fit a backbone of ``num_layers``.
    """
    if config.prior_layers and config.selection != "explicit":
        raise ConfigError(
            f"prior_layers {list(config.prior_layers)} require selection 'explicit', not "
            f"'{config.selection}': add --selection explicit, or omit them."
        )
    if not config.prior_head:
        return ()
    match config.selection:
        case "uniform":
            return uniform_layers(num_layers, config.num_prior_layers, config.first_prior_layer, config.rounding)
        case "last":
            return last_layers(num_layers, config.num_prior_layers)
        case "explicit":
            return explicit_layers(num_layers, config.prior_layers)
        case "gate":
            if not 1 <= config.num_prior_layers <= num_layers:
                raise ConfigError(
                    f"The gate cannot keep {config.num_prior_layers} of {num_layers} layers per column: "
                    f"num_prior_layers (K_p) must lie in 1..{num_layers}."
                )
            return tuple(range(num_layers))


def split_depth(config: SplitConfig, num_layers: int) -> int:
    """The branching point of the task head, after ``L - K_t`` blocks (Eq. 1).

    Raises:
        ConfigError: K_t exceeds L.
    """
    if config.num_tuned_layers > num_layers:
        raise ConfigError(
            f"--num-tuned-layers {config.num_tuned_layers}: the backbone has {num_layers} blocks, so K_t must lie in "
            f"0..{num_layers}."
        )
    return num_layers - config.num_tuned_layers
