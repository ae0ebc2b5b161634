"""Console output of a data check."""

from __future__ import annotations

import re
from collections import defaultdict

from rich import box
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from vitsplit.data.check import Finding, Report, SplitReport

SHOWN = 5
"""Maximum number of listed findings of one kind, and of listed sizes."""


def show_report(report: Report, console: Console) -> None:
    """Prints the statistics of a data set, the findings and the verdict."""
    console.print(f"[bold]{escape(report.path)}[/]: {report.task}, format {report.format}", highlight=False)
    if report.splits:
        console.print(_splits_table(report))
    if any(split.facts for split in report.splits.values()):
        console.print(_facts_table(report))
    if any(split.classes for split in report.splits.values()):
        console.print(_classes_table(report))
    for level, color in (("warning", "yellow"), ("error", "red")):
        _show_findings([finding for finding in report.findings if finding.level == level], level, color, console)
    errors, warnings = len(report.errors), len(report.warnings)
    verdict = "[red]not ready[/]" if errors else "[green]ready[/]"
    console.print(f"{verdict}: {_count(errors, 'error')}, {_count(warnings, 'warning')}", highlight=False)


def describe_sizes(split: SplitReport) -> str:
    """Smallest, median and largest side lengths, and the most common sizes."""
    if not split.sizes:
        return "none could be read"
    if len(split.sizes) == 1:
        width, height, _ = split.sizes[0]
        return f"all {width}x{height}"
    widths = sorted(width for width, _, count in split.sizes for _ in range(count))
    heights = sorted(height for _, height, count in split.sizes for _ in range(count))
    middle = len(widths) // 2
    common = ", ".join(f"{width}x{height} ({count})" for width, height, count in split.sizes[:SHOWN])
    more = f", and {len(split.sizes) - SHOWN} other sizes" if len(split.sizes) > SHOWN else ""
    return (
        f"width {widths[0]} / {widths[middle]} / {widths[-1]}, height {heights[0]} / {heights[middle]} / {heights[-1]} "
        f"(min / median / max)\n{common}{more}"
    )


def escape(text: str) -> str:
    """Escapes untrusted text for printing: markup, control characters and surrogates."""
    text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    return escape_markup(text.encode(errors="backslashreplace").decode())


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def _splits_table(report: Report) -> Table:
    splits = report.splits.values()
    per_pixel = any(split.ignored_share is not None for split in splits)
    table = _table("splits")
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("sizes (width x height)")
    table.add_column("converted on reading")
    if per_pixel:
        table.add_column("pixels ignored", justify="right")
    for name, split in report.splits.items():
        converted = ", ".join(f"{count} {kind}" for kind, count in split.converted.items()) or "none"
        ignored = [f"{split.ignored_share or 0.0:.1%}"] if per_pixel else []
        table.add_row(name, str(split.images), describe_sizes(split), converted, *ignored)
    return table


def _facts_table(report: Report) -> Table:
    """One row per figure, in the order of the checks."""
    table = _table("figures")
    table.add_column("")
    for name in report.splits:
        table.add_column(name, justify="right")
    names = dict.fromkeys(name for split in report.splits.values() for name in split.facts)
    for name in names:
        table.add_row(escape(name), *(_figure(split.facts.get(name, "none")) for split in report.splits.values()))
    return table


def _classes_table(report: Report) -> Table:
    """One row per class: its fraction of labeled pixels or its number of objects, and the number of its images."""
    pixels = report.counted == "pixels"
    table = _table("classes, as fraction of labeled pixels" if pixels else "classes")
    table.add_column("id", justify="right")
    table.add_column("class")
    for name in report.splits:
        table.add_column(f"{name} {report.counted}", justify="right")
        table.add_column(f"{name} images", justify="right")
    first = next(iter(report.splits.values()))
    for k, entry in enumerate(first.classes):
        cells = []
        for split in report.splits.values():
            here = split.classes[k]
            amount = _percent(here.share) if pixels else str(here.count)
            cells += [amount, str(here.images)] if here.count else ["[yellow]never[/]", "0"]
        table.add_row(str(k), escape(entry.name), *cells)
    return table


def _show_findings(findings: list[Finding], level: str, color: str, console: Console) -> None:
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    for kind, group in kinds.items():
        console.print(f"[{color} bold]{level}: {escape(kind)}[/] ({len(group)})", highlight=False)
        for finding in group[:SHOWN]:
            console.print(f"  {escape(finding.message)}", highlight=False, soft_wrap=True)
        if len(group) > SHOWN:
            console.print(f"  and {len(group) - SHOWN} more (--json lists all)", highlight=False)


def _figure(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return escape(str(value))


def _percent(share: float) -> str:
    return "< 0.01%" if share < 5e-5 else f"{share:.2%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
