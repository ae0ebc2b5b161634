import math

import numpy as np
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from vitsplit.engine.optim import lr_factor
from vitsplit.train_config import OptimConfig


@pytest.mark.parametrize("final_div_factor", [1e4, 100.0, 1.0])
@pytest.mark.parametrize("steps", [4, 37, 1000])
def test_one_cycle_equals_torch(steps, final_div_factor):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False, final_div_factor=final_div_factor
    )
    config = OptimConfig(schedule="one-cycle", final_div_factor=final_div_factor)
    for step in range(steps):
        assert lr_factor(step, steps, config) == pytest.approx(oracle.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < steps - 1:
            oracle.step()


def mmcv_poly_with_warmup(step, steps, warmup, ratio, power):
    # mmcv's PolyLrUpdaterHook, by_epoch=False, min_lr=0, warmup="linear"
    regular = (1 - step / steps) ** power
    if step >= warmup:
        return regular
    k = (1 - step / warmup) * (1 - ratio)
    return regular * (1 - k)


@pytest.mark.parametrize("step", [0, 1, 750, 1499, 1500, 20_000, 39_999])
def test_poly_equals_the_release(step):
    expected = mmcv_poly_with_warmup(step, 40_000, 1500, 1e-6, 0.9)
    assert lr_factor(step, 40_000, OptimConfig()) == pytest.approx(expected, rel=1e-12)


def test_warm_up_is_at_most_a_tenth_of_the_run():
    config = OptimConfig(schedule="constant", warmup_steps=1500, warmup_start=0.1)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[5] == pytest.approx(0.55)
    assert factors[9] < 1 and factors[10:] == [1.0] * 90


def test_no_warm_up_in_very_short_runs():
    assert lr_factor(0, 9, OptimConfig(schedule="constant")) == 1.0


@pytest.mark.parametrize("epoch_length", [1, 7, 7393])
def test_step_equals_torch_at_epochs_8_and_11_of_12(epoch_length):
    steps = 12 * epoch_length
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[8 * epoch_length, 11 * epoch_length])
    optimizer.step()
    expected = []
    for _ in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        oracle.step()
    config = OptimConfig(schedule="step", warmup_steps=0)
    np.testing.assert_allclose([lr_factor(step, steps, config) for step in range(steps)], expected, rtol=1e-9)


def test_step_uses_warm_up_milestones_and_factor():
    config = OptimConfig(
        schedule="step", warmup_steps=500, warmup_start=1e-3, step_milestones=(0.5, 0.9, 0.9), step_gamma=0.5
    )
    factors = [lr_factor(step, 10_000, config) for step in (0, 250, 500, 4999, 5000, 8999, 9000, 9999)]
    assert factors == pytest.approx([1e-3, 0.5005, 1, 1, 0.5, 0.5, 0.125, 0.125])


@pytest.mark.parametrize("steps", [8, 101])
def test_cosine_equals_torch(steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    config = OptimConfig(schedule="cosine", warmup_steps=0)
    for step in range(steps):
        assert lr_factor(step, steps, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("steps", "warmup"), [(2180, 66), (101, 10), (9, 0)])
def test_warmup_cosine_equals_transformers(steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    config = OptimConfig(schedule="warmup-cosine", warmup_steps=warmup, warmup_start=0.0)
    for step in range(steps):
        assert lr_factor(step, steps, config) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_cosine_with_warm_up_equals_mmcv():
    """CosineAnnealingLrUpdaterHook times its linear warm-up, as in runs of earlier versions."""
    config = OptimConfig(schedule="cosine", warmup_steps=100, warmup_start=0.01)
    for step in (0, 50, 99, 100, 1500, 1999):
        warmup = 1 - (1 - step / 100) * (1 - 0.01) if step < 100 else 1.0
        expected = warmup * (1 + math.cos(math.pi * step / 2000)) / 2
        assert lr_factor(step, 2000, config) == pytest.approx(expected, rel=1e-9)
