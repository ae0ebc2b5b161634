"""Malformed inputs by random seeds, for a given time: ``make fuzz MINUTES=30``.

Readers run in a child process with bounded memory, so that a crash or a hang of a decoder is found too. Every failure
is printed with its area and seed; ``make fuzz CASE="coco 17"`` repeats one.
"""

import argparse
import logging
import multiprocessing
import resource
import secrets
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "inference"),
    str(Path(__file__).parents[1]),
]

from areas import AREAS  # noqa: E402
from test_malformed import LONGEST_SECONDS, judge, timeout_alarm  # noqa: E402

MEMORY = 4 << 30
"""Bytes that readers may take besides what the child has when it starts."""
GRACE_SECONDS = 20
"""After the alarm, for a decoder that does not return to Python."""


def child(channel: Connection, start: int) -> None:
    """Tests one seed after the other, and reports each before it starts."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder, timeout_alarm():
        seed = start
        while True:
            area = AREAS[seed % len(AREAS)]
            channel.send((area.name, seed, None))
            channel.send((area.name, seed, judge(area, seed, Path(folder) / "case")))
            seed += 1


def fuzz(minutes: float, start: int) -> int:
    """Runs for some minutes; returns how many seeds failed."""
    end, done, failed = time.monotonic() + 60 * minutes, 0, 0
    context = multiprocessing.get_context("spawn")
    seed = start
    while time.monotonic() < end:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(theirs, seed), daemon=True)
        process.start()
        theirs.close()
        name, message = "?", ""
        patience: float = 120  # the first time, everything is imported
        try:
            while time.monotonic() < end:
                if not ours.poll(patience):
                    message = "does not return"
                    break
                name, seed, result = ours.recv()
                patience = LONGEST_SECONDS + GRACE_SECONDS
                if result is not None:
                    done += 1
                    failed += bool(result)
                    if result:
                        print(result, flush=True)
        except EOFError:
            process.join()
            message = f"ended the process (exit code {process.exitcode})"
        if message:
            failed += 1
            print(f"{name}, seed {seed}: {message}", flush=True)
        process.kill()
        process.join()
        seed += 1
    print(f"{done} inputs from seed {start} on, {failed} failed")
    return failed


def main() -> int:
    """Fuzzes, or repeats one case; the exit status is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="the first seed; default: a random one")
    parser.add_argument("--case", default="", metavar="'AREA SEED'", help="repeat one case")
    options = parser.parse_args()
    if options.case:
        name, _, seed = options.case.rpartition(" ")
        area = next(area for area in AREAS if area.name == name)
        with tempfile.TemporaryDirectory() as folder, timeout_alarm():
            message = judge(area, int(seed), Path(folder) / "case")
        print(message or f"{options.case}: passes")
        return bool(message)
    return fuzz(options.minutes, secrets.randbelow(10**9) if options.seed is None else options.seed) > 0


if __name__ == "__main__":
    sys.exit(main())
