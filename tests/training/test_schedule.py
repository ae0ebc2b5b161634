import pytest
import torch

from vitsplit.training.config import OptimConfig
from vitsplit.training.schedule import lr_factor


@pytest.mark.parametrize("steps", [4, 37, 1000])
def test_one_cycle_is_torchs(steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        assert lr_factor(step, steps, OptimConfig(schedule="one-cycle")) == pytest.approx(
            oracle.get_last_lr()[0], abs=1e-9
        )
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
def test_poly_is_the_releases(step):
    expected = mmcv_poly_with_warmup(step, 40_000, 1500, 1e-6, 0.9)
    assert lr_factor(step, 40_000, OptimConfig()) == pytest.approx(expected, rel=1e-12)


def test_a_short_run_warms_up_for_a_tenth():
    config = OptimConfig(schedule="constant", warmup_steps=1500, warmup_start=0.1)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[5] == pytest.approx(0.55)
    assert factors[9] < 1 and factors[10:] == [1.0] * 90


def test_no_warm_up_where_a_tenth_is_less_than_a_step():
    assert lr_factor(0, 9, OptimConfig(schedule="constant")) == 1.0
