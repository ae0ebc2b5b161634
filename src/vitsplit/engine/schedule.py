"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from vitsplit.engine.config import OptimConfig

# torch.optim.lr_scheduler.OneCycleLR's defaults, so that the name means what everybody means by it.
ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25


def lr_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The multiple of the peak learning rate that an optimiser step uses.

    ``poly``, ``cosine``, ``step`` and ``constant`` are multiplied by a linear warm-up, as in mmcv and so in the
    release: ``warmup_start`` at step 0, one from ``warmup_steps`` on. ``warmup-cosine`` is the same warm-up and after
    it a whole half cosine, as transformers' ``get_cosine_schedule_with_warmup`` and so in LLaVA-1.5. ``one-cycle``
    brings its own warm-up and ends at ``1 / (25 final_div_factor)``, as PyTorch's.

    Args:
        step: Optimiser steps that are done, 0 .. ``steps - 1``.
        steps: Length of the run.
        config: Shape of the schedule.

    Returns:
        The factor, 0 .. 1.
    """
    if config.schedule == "one-cycle":
        return _one_cycle(step, steps, config.final_div_factor)
    return _decay(step, steps, config) * _warmup(step, steps, config)


def _decay(step: int, steps: int, config: OptimConfig) -> float:
    match config.schedule:
        case "poly":
            return (1 - step / steps) ** config.poly_power
        case "step":
            # Rounded, so that a share such as 8/12 is the step that is meant, whichever way it is rounded as a float.
            passed = sum(step >= round(share * steps) for share in config.step_milestones)
            return config.step_gamma**passed
        case "cosine":
            return _cosine(1.0, 0.0, step / steps)
        case "warmup-cosine":
            length = _warmup_length(steps, config)
            return _cosine(1.0, 0.0, max(0, step - length) / (steps - length))
        case _:
            return 1.0


def _warmup(step: int, steps: int, config: OptimConfig) -> float:
    length = _warmup_length(steps, config)
    if step >= length:
        return 1.0
    return config.warmup_start + (1 - config.warmup_start) * step / length


def _warmup_length(steps: int, config: OptimConfig) -> int:
    return min(config.warmup_steps, steps // 10)


def _one_cycle(step: int, steps: int, final_div_factor: float) -> float:
    peak = ONE_CYCLE_RISE * steps - 1
    if step <= peak:
        return _cosine(ONE_CYCLE_START, 1.0, step / peak)
    return _cosine(1.0, ONE_CYCLE_START / final_div_factor, (step - peak) / (steps - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
