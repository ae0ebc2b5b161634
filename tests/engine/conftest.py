import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState


@pytest.fixture(autouse=True)
def one_thread_and_fresh_accelerate():
    """Resets accelerate's process-wide state before every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
