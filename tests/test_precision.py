import itertools

import pytest
import torch

from vitsplit import precision
from vitsplit.errors import ConfigError
from vitsplit.precision import bf16_speedup, resolve_precision, train_in_float32


@pytest.mark.parametrize(("speedup", "expected"), [(0.4, "fp32"), (1.49, "fp32"), (1.5, "bf16"), (6.0, "bf16")])
def test_auto_on_a_cpu_is_bf16_only_if_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_an_explicit_precision_is_used(monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 100.0)
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


def test_fp16_on_a_cpu_is_rejected():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))


def _clock(monkeypatch, durations):
    """A clock that gives products these durations; returns the remaining ticks."""
    ends = itertools.accumulate(durations)
    pairs = ((end - duration, end) for end, duration in zip(ends, durations, strict=True))
    ticks = itertools.chain.from_iterable(pairs)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    return ticks


def test_the_probe_uses_the_fastest_time_after_a_warm_up(monkeypatch):
    # float32 and bf16 alternate; the first product of each includes kernel setup, and other load slows single products.
    first_look = [0.1, 0.1, 4.0, 9.0, 5.0, 8.0]  # a ratio of 0.5: just high enough to continue
    left = _clock(monkeypatch, [*first_look, 0.1, 0.1, 6.0, 9.0, 50.0, 2.0, 7.0, 30.0])
    assert bf16_speedup(size=8, repeats=3) == pytest.approx(6.0 / 2.0)
    assert not list(left)


def test_slow_bf16_is_detected_with_small_products(monkeypatch):
    left = _clock(monkeypatch, [0.1, 0.1, 4.0, 9.0, 5.0, 20.0, 1.0, 1.0])
    assert bf16_speedup(size=8, repeats=1) == pytest.approx(4.0 / 9.0)
    assert len(list(left)) == 4  # the two products of the large size were not computed


def test_trainable_parameters_are_float32_and_frozen_ones_unchanged():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).bfloat16()
    model[0].requires_grad_(False)
    train_in_float32(model)
    assert {parameter.dtype for parameter in model[0].parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model[1].parameters()} == {torch.float32}
