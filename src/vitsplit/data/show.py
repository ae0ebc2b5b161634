"""The report of a data check on screen."""

from __future__ import annotations

from collections import defaultdict

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitsplit.data.check import Finding, Report, SplitReport

SHOWN = 5
"""Findings of one kind, and sizes, that are listed; the others are counted."""


def show_report(report: Report, console: Console) -> None:
    """Prints what a data set holds, then what is wrong with it, then the verdict."""
    console.print(f"[bold]{escape(report.path)}[/]: {report.task}, format {report.format}", highlight=False)
    if report.splits:
        console.print(_splits_table(report))
        console.print(_classes_table(report))
    for level, colour in (("warning", "yellow"), ("error", "red")):
        _show_findings([finding for finding in report.findings if finding.level == level], level, colour, console)
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


def _splits_table(report: Report) -> Table:
    table = Table(title="splits", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("sizes (width x height)")
    table.add_column("converted on reading")
    table.add_column("pixels ignored", justify="right")
    for name, split in report.splits.items():
        converted = ", ".join(f"{count} {kind}" for kind, count in split.converted.items()) or "none"
        table.add_row(name, str(split.images), describe_sizes(split), converted, f"{split.ignored_share:.1%}")
    return table


def _classes_table(report: Report) -> Table:
    """One row per class: its share of the labelled pixels, and the images that have it, in every split."""
    table = Table(
        title="classes, as share of the labelled pixels", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    table.add_column("id", justify="right")
    table.add_column("class")
    for name in report.splits:
        table.add_column(f"{name} pixels", justify="right")
        table.add_column(f"{name} images", justify="right")
    first = next(iter(report.splits.values()))
    for k, count in enumerate(first.classes):
        cells = []
        for split in report.splits.values():
            here = split.classes[k]
            cells += [_percent(here.share), str(here.images)] if here.pixels else ["[yellow]never[/]", "0"]
        table.add_row(str(k), escape(count.name), *cells)
    return table


def _show_findings(findings: list[Finding], level: str, colour: str, console: Console) -> None:
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    for kind, group in kinds.items():
        console.print(f"[{colour} bold]{level}: {escape(kind)}[/] ({len(group)})", highlight=False)
        for finding in group[:SHOWN]:
            console.print(f"  {escape(finding.message)}", highlight=False, soft_wrap=True)
        if len(group) > SHOWN:
            console.print(f"  and {len(group) - SHOWN} more (--json lists all)", highlight=False)


def _percent(share: float) -> str:
    return "< 0.01%" if share < 5e-5 else f"{share:.2%}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
