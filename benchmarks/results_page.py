"""Writes docs/results.md: every claim of the paper that can be checked here, the paper's figure, ours, and the command.

Counts are computed on every run. Measurements are read from ``benchmarks/measured/*.json``, each with the machine and
the command of its figures; a claim without a file is listed as not measured.

    python benchmarks/results_page.py
"""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results_claims import BEYOND, COUNTS, MEASURED, NOT_COVERED, Count, Measured
from vitsplit.cli.flags import from_flags
from vitsplit.cli.info_subject import describe, find_subject, with_classes
from vitsplit.recipes import recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
FIGURES = Path(__file__).parent / "measured"

INTRODUCTION = """\
# The paper's claims, checked

This page is written by `python benchmarks/results_page.py`. The first table is counted anew each time; figures of the
second were measured by the commands beside them, on the machine that is named.

"""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    cells: tuple[str, ...]

    def __str__(self) -> str:
        return "| " + " | ".join(self.cells) + " |"


def main() -> None:
    """Writes the page, or with ``--check`` only checks whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page would change")
    page = render()
    if parser.parse_args().check:
        raise SystemExit(0 if PAGE.read_text(encoding="utf-8") == page else f"{PAGE} is out of date: write it anew.")
    PAGE.write_text(page, encoding="utf-8")
    print(PAGE)


def render() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join([counted(), measured(), beyond(), not_covered()])


def counted() -> str:
    """Parameters and multiply-adds, from shapes alone."""
    rows = [
        Row(
            (
                count.claim,
                f"`{count.command}`",
                _figure(count.paper),
                _figure(ours := count_now(count)),
                _verdict(count, ours),
            )
        )
        for count in COUNTS
    ]
    text = (
        "Within half a percent unless a sentence says otherwise. M: 10^6 trained parameters; G: 10^9 multiply-adds.\n"
    )
    return _section("Counted", text, ("claim", "command", "paper", "ours", ""), rows)


def count_now(count: Count) -> float:
    """The figure of a claim, computed by the code that the command runs."""
    arguments = shlex.split(count.command)
    assert arguments[:2] == ["vitsplit", "info"]
    flags = [flag for flag in arguments[3:] if flag != "--json"]
    size: tuple[int, ...] = ()
    if "--size" in flags:
        at = flags.index("--size")
        size = (int(flags[at + 1]), int(flags[at + 2]))
        del flags[at : at + 3]
    subject = find_subject(arguments[2], from_flags(recipe(arguments[2]), flags))
    if count.num_classes is not None:
        subject = with_classes(subject, count.num_classes)
    facts = describe(subject, size or tuple(subject.config.task.crop_size))
    value: Any = facts
    for key in count.key.split("."):
        value = value[key]
    return float(value) / count.unit


def _figure(value: float) -> str:
    return f"{value:.4g}" if value >= 100 else f"{value:.2f}"


def _verdict(count: Count, ours: float) -> str:
    """The sentence that explains a difference; empty if the difference is small."""
    differs = abs(ours / count.paper - 1) > 0.005
    if differs and not count.note:
        raise SystemExit(f"{count.claim}: ours is {ours:.4f}, the paper's {count.paper}. Say why in results_claims.py.")
    return count.note


def measured() -> str:
    """Measured figures, and claims that are not measured yet."""
    rows, missing, machines = [], [], {}
    for claim in MEASURED:
        file = FIGURES / f"{claim.file}.json"
        if not file.is_file():
            missing.append(f"- {claim.claim}: {_code(claim.command)}")
            continue
        found = json.loads(file.read_text(encoding="utf-8"))
        machine = machines.setdefault(found["machine"], len(machines) + 1)
        rows.append(
            Row(
                (
                    claim.claim,
                    _code(found["command"]),
                    claim.paper,
                    _measured_figure(claim, found),
                    f"{claim.note} ({machine})",
                )
            )
        )
    machine_lines = "".join(f"{number}. {machine}\n" for machine, number in machines.items())
    text = _section("Measured", "", ("claim", "command", "paper", "ours", "(machine)"), rows)
    text += f"\nMachines:\n\n{machine_lines}"
    if missing:
        text += "\nNot measured yet:\n\n" + "\n".join(missing) + "\n"
    return text


def _measured_figure(claim: Measured, found: dict[str, Any]) -> str:
    return claim.ours.format(**found["figures"])


def beyond() -> str:
    """Claims that require data sets and hardware that were not available."""
    rows = [Row((each.claim, each.paper, _code(each.command))) for each in BEYOND]
    text = (
        "The exact command for those who have the data; none of these was run here. Table 14's text has layer-wise "
        "decay\nwith rates tuned for each baseline, and prints none: its commands have the adapters' published 0.95.\n"
    )
    return _section("With the data sets", text, ("claim", "paper", "command"), rows)


def _code(commands: str) -> str:
    """Commands that are run one after the other."""
    return f"`{commands.replace(', then ', '`, then `')}`"


def not_covered() -> str:
    """Claims that no command checks."""
    lines = "\n".join(f"- {line}" for line in NOT_COVERED)
    return f"## Not covered\n\n{lines}\n"


def _section(title: str, text: str, header: tuple[str, ...], rows: list[Row]) -> str:
    table = [Row(header), Row(("---",) * len(header)), *rows]
    return f"## {title}\n\n{text}" + "\n" * bool(text) + "\n".join(map(str, table)) + "\n"


if __name__ == "__main__":
    main()
