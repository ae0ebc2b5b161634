import io

import torch
from rich.console import Console

from vitsplit.engine.progress import ProgressView, StepTimer, peak_memory_gb

FIGURES = {"loss": 0.5, "lr": 2e-4, "images_per_second": 12.5, "seconds_left": 3725.0, "memory_gb": 1.5}


def test_without_a_terminal_lines_are_printed_periodically_and_at_the_end():
    text, now = io.StringIO(), [0.0]
    view = ProgressView(Console(file=text, width=40), steps=100, start=0, clock=lambda: now[0])
    with view:
        for step in range(1, 101):
            now[0] += 1.0
            view.step(step, **FIGURES)
    lines = text.getvalue().splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[-1] == "step 100/100  loss 0.5000  lr 2.00e-04  12.5 images/s  left 1:02:05  peak memory 1.5 GB"


def test_a_terminal_shows_a_bar_with_the_figures_and_the_evaluations():
    text = io.StringIO()
    view = ProgressView(Console(file=text, force_terminal=True, width=160), steps=100, start=40)
    with view:
        view.step(41, **FIGURES)
        advance = view.evaluating()
        advance()
        view.evaluated()
        view.step(42, **FIGURES)
    shown = text.getvalue()
    assert "41/100" in shown or "42/100" in shown
    assert "12.5 images/s" in shown and "left 1:02:05" in shown


def test_other_processes_show_nothing():
    view = ProgressView(None, steps=10, start=0)
    with view:
        view.step(1, **FIGURES)
        view.evaluating()()
        view.evaluated()


def test_peak_memory_grows_with_allocations():
    assert peak_memory_gb(torch.device("cpu")) > 0.05
    held = torch.ones(300, 2**20, dtype=torch.uint8)  # 300 MiB
    assert peak_memory_gb(torch.device("cpu")) > held.numel() / 2**30


def test_the_rate_starts_at_the_first_step_and_is_smoothed():
    timer = StepTimer()
    timer.add(2.0)
    assert timer.seconds_per_step == 2.0
    timer.add(4.0)
    assert timer.seconds_per_step == 2.1
