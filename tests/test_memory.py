import resource
import sys
from pathlib import Path

import pytest

from vitsplit.memory import peak_resident_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_equals_the_system_value():
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = peak_resident_bytes()
    # The other figure is of the same pages, and no less than the parent's at the start of this process.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0.99 * now <= peak <= 1.01 * most
    assert peak_resident_bytes() >= peak  # a peak stays
