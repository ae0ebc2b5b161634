"""Malformed files: each gives one error that names it, or a success that the rules of the format allow."""

import random
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from areas import AREAS
from mutations import outcome

from vitsplit.errors import VitsplitError

LONGEST_SECONDS, MOST_BYTES = 10, 1 << 30


class TooLong(BaseException):
    """A reader did not return in time."""


def judge(area, seed, folder):
    """Corrupts an input by a seed and reads it; returns an error in the outcome, or an empty string."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    area.build(folder)
    broken = area.corrupt(folder, random.Random(f"{area.name} {seed}"))
    before, start = forget_peak(), time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, LONGEST_SECONDS)
    try:
        found = outcome(lambda: area.use(folder))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, grown = time.monotonic() - start, peak_bytes() - before
    where = f"{area.name}, seed {seed} ({broken.what}): "
    if seconds > LONGEST_SECONDS:
        return f"{where}took {seconds:.0f} s"
    if grown > MOST_BYTES:
        return f"{where}took {grown / 1e9:.1f} GB"
    if found.error is None:
        return "" if area.accept(found.result, broken) else f"{where}silently accepted"
    if not isinstance(found.error, VitsplitError):
        return f"{where}{type(found.error).__name__}: {str(found.error)[:300]}"
    message = str(found.error)
    if not any(name in message for name in (broken.file.name, *area.names)):
        return f"{where}the error does not name {broken.file.name}: {message[:300]}"
    return "" if len(message) < 5000 else f"{where}an error of {len(message)} characters"


def peak_bytes():
    """The most memory that this process had since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak():
    """Resets the peak to the current memory, and returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@contextmanager
def timeout_alarm():
    """Raises an exception at the timeout of ``judge``."""

    def raise_timeout(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, raise_timeout)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_malformed_files_give_one_error_or_a_valid_result(area, tmp_path):
    with timeout_alarm():
        wrong = [message for seed in range(area.count) if (message := judge(area, seed, tmp_path / "case"))]
    assert not wrong, f"{len(wrong)} of {area.count}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_valid_inputs_are_read(area, tmp_path):
    area.build(tmp_path)
    area.use(tmp_path)


def test_there_are_at_least_a_thousand_inputs():
    assert sum(area.count for area in AREAS) >= 1000
