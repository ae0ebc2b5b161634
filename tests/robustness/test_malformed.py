"""Malformed files: each ends in one error that names it, or in a success that the format's rules allow."""

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
    """A reader that does not come to an end."""


def judge(area, seed, folder):
    """Breaks an input by a seed and has it read; returns what is wrong with the outcome, or an empty string."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    area.build(folder)
    broken = area.spoil(folder, random.Random(f"{area.name} {seed}"))
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
    said = str(found.error)
    if not any(name in said for name in (broken.file.name, *area.names)):
        return f"{where}the error does not name {broken.file.name}: {said[:300]}"
    return "" if len(said) < 5000 else f"{where}an error of {len(said)} characters"


def peak_bytes():
    """The most memory that this process had since ``forget_peak``."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak():
    """Sets the peak to the memory of now, and returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


@contextmanager
def ringing():
    """Lets the alarm of ``judge`` raise."""

    def ring(*_):
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_malformed_files(area, tmp_path):
    with ringing():
        wrong = [said for seed in range(area.count) if (said := judge(area, seed, tmp_path / "case"))]
    assert not wrong, f"{len(wrong)} of {area.count}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_the_good_input_of_every_area_is_read(area, tmp_path):
    area.build(tmp_path)
    area.use(tmp_path)


def test_there_are_a_thousand():
    assert sum(area.count for area in AREAS) >= 1000
