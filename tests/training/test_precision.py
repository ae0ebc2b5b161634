import pytest
import torch

from vitsplit.errors import ConfigError
from vitsplit.training import precision
from vitsplit.training.precision import bf16_speedup, resolve_precision


@pytest.mark.parametrize(("speedup", "expected"), [(0.4, "fp32"), (1.49, "fp32"), (1.5, "bf16"), (6.0, "bf16")])
def test_auto_on_a_processor_takes_bf16_only_where_it_is_faster(monkeypatch, speedup, expected):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: speedup)
    assert resolve_precision("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(precision, "bf16_speedup", lambda: 100.0)
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"


def test_fp16_on_a_processor_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))


def test_the_probe_measures_the_clock(monkeypatch):
    ticks = iter([0, 6, 10, 16, 20, 26, 100, 102, 110, 112, 120, 122])  # 6 s in float32, 2 s in bf16
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(ticks))
    assert bf16_speedup(size=8) == 3.0
