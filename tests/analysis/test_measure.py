import pytest
import torch

from vitsplit.analysis import measure
from vitsplit.analysis.measure import (
    Spread,
    Stopwatch,
    describe_machine,
    paired_ratio,
    product_speed,
    run_interleaved,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([5.0, 1.0, 4.0, 2.0, 3.0], (3.0, 2.0, 4.0)),
        ([1.0, 3.0], (2.0, 1.5, 2.5)),
        ([7.0], (7.0, 7.0, 7.0)),
        ([1.0, 1.0, 1.0, 9.0], (1.0, 1.0, 3.0)),
    ],
)
def test_median_and_quartiles(samples, expected):
    found = Spread.of(samples)
    assert (found.median, found.q1, found.q3) == expected


def test_ratios_are_computed_per_turn():
    # The machine becomes ten times slower in the middle: the ratio of medians would be 2.2 / 0.65.
    slow, quick = [2.0, 2.4, 20.0, 2.0], [1.0, 1.0, 10.0, 0.3]
    found = paired_ratio(slow, quick)
    assert found.median == pytest.approx((2.0 + 2.4) / 2)
    with pytest.raises(ValueError):
        paired_ratio([1.0], [1.0, 2.0])


def test_functions_take_turns_and_warm_up_turns_are_discarded():
    called: list[str] = []
    messages: list[str] = []
    functions = {name: lambda name=name: called.append(name) or len(called) for name in "abc"}
    found = run_interleaved(functions, turns=2, warmup=1, say=messages.append)
    assert "".join(called) == "abc" + "bca" + "cab"
    assert found == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}
    assert messages == ["warming up", "turn 1 of 2", "turn 2 of 2"]


def test_a_stopwatch_splits_time_by_part(monkeypatch):
    # start (mark, begin), b, a, b, stop (mark, end)
    readings = iter([10.0, 10.0, 11.0, 13.0, 13.5, 17.5, 17.75])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(readings))
    watch = Stopwatch(CPU)
    watch.start()
    for part in ("b", "a", "b"):
        watch.mark(part)
    total, parts = watch.stop("rest")
    assert parts == {"b": 1.5, "a": 2.0, "rest": 4.0}
    assert total == 7.75


def test_a_stopwatch_can_be_used_again():
    watch = Stopwatch(CPU)
    for part in ("a", "b"):
        watch.start()
        watch.mark(part)
        assert watch.stop("rest")[1].keys() == {part, "rest"}


def test_speed_of_a_matrix_product(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measure, "_WARM_UP_PRODUCTS", 1)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) / 2)
    speeds = product_speed(CPU, torch.float32, repeats=2, side=10)
    # From the second reading of a start to the last of a stop are two, each half a second after the one before.
    assert speeds == pytest.approx([1000 / 1.0 / 1e9] * 2)


def test_the_machine_is_named():
    found = describe_machine(CPU)
    assert (
        found["device"] == "cpu" and found["threads"] == torch.get_num_threads() and found["torch"] == torch.__version__
    )
    assert found["cpu"] and found["cores"] >= 1 and found["cuda"] is None
