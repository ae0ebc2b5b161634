"""Shared components of benchmark reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitsplit.analysis.bench.comparison import REFERENCE, Comparison
from vitsplit.analysis.measure import Spread
from vitsplit.report import Page, screen_table

Rows = Sequence[Sequence[str]]
"""A table: its header, then its rows."""


def terminal_table(rows: Rows) -> Table:
    """A transposed table for the terminal, since there are few methods and many figures."""
    head, *columns = zip(*rows, strict=True)
    return screen_table(head, columns, box=SIMPLE_HEAD, show_edge=False)


def where(machine: Mapping[str, Any]) -> str:
    """A description of the machine."""
    device = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    return f"{device}, {threads}, PyTorch {machine['torch']}"


def comparison_page(
    title: str, result: Comparison[Any], subtitle: str, *, of_reference: str, more: Sequence[tuple[str, str]] = ()
) -> Page:
    """A page that starts with the seconds of ViT-Split and the ratio of each method to it."""
    page = Page(title, subtitle=subtitle)
    ratios = [
        (f"{result.time_ratio(label).median:.2f}x", f"time of {label}, relative to {REFERENCE}")
        for label in result.methods
        if label != REFERENCE
    ]
    page.figures([(f"{result.median(REFERENCE):.3f} s", of_reference), *ratios, *more])
    return page


def draw_quartiles(axis: Any, row: int, found: Spread) -> None:
    """Draws the quartiles of a bar."""
    distances = [[found.median - found.q1], [found.q3 - found.median]]
    axis.errorbar(found.median, row, xerr=distances, color="black", capsize=3, linewidth=1)


def add_tables(page: Page, tables: Mapping[str, Rows]) -> None:
    """Adds tables to a page with headings, omitting empty ones."""
    for heading, (head, *rows) in tables.items():
        if rows:
            page.heading(heading)
            page.table(head, rows)


def finish(page: Page, folder: Path, command: str, data: Mapping[str, Any]) -> Path:
    """Adds the command to a page, and writes it with its data."""
    page.heading("Command")
    page.code(command)
    return page.write(folder, data)
