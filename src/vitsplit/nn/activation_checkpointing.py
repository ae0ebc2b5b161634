"""Memory for a little time: what is cheap to compute is not kept for the backward pass but computed again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, which must draw no random numbers.

    Of all that it computes on the way nothing is kept. The backward pass begins it again, and stops where it has
    everything that it needs: a product at the end of the function is not made twice.
    """
    if not torch.is_grad_enabled():
        return function(*tensors)
    result: Tensor = checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
    return result
