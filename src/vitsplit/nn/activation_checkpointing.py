"""Activation checkpointing for cheap operations: recomputed in the backward pass instead of stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` without storing its intermediate tensors. The function must not draw random numbers.

    The backward pass recomputes the function up to the last tensor it needs, so a matrix product at its end is not
    computed twice.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result
