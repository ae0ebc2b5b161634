import accelerate.state
import pytest
import torch

from vitsplit.engine.processes import make_accelerator, process_state


@pytest.fixture
def apple(monkeypatch):
    """A machine where accelerate finds Apple's GPU and no CUDA."""
    monkeypatch.setattr(accelerate.state, "is_mps_available", lambda *_, **__: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_device_without_float64_is_not_selected(apple):
    assert accelerate.PartialState().default_device.type == "mps", "what accelerate would take by itself"
    accelerate.PartialState._reset_state()
    assert process_state().device.type == "cpu"
    assert make_accelerator().device.type == "cpu"
    assert make_accelerator().num_processes == 1
