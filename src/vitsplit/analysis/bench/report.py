"""What the reports of all benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitsplit.report import Page

Rows = Sequence[Sequence[str]]
"""A table: its head, then its rows."""


def on_screen(rows: Rows) -> Table:
    """A table for the terminal, with its rows side by side: what is compared is few, and its figures are many."""
    first, *others = zip(*rows, strict=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for index, name in enumerate(first):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for figures in others:
        table.add_row(*figures)
    return table


def where(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    device = machine["cpu"] if machine["device"] == "cpu" else f"{machine['device']} ({machine['cpu']})"
    return f"{device}, {machine['threads']} threads, PyTorch {machine['torch']}"


def add_tables(page: Page, tables: Mapping[str, Rows]) -> None:
    """Puts tables on a page, each under its name; those without rows are left out."""
    for heading, (head, *rows) in tables.items():
        if rows:
            page.heading(heading)
            page.table(head, rows)


def finish(page: Page, folder: Path, command: str) -> Path:
    """Ends a page with the command that made it, and writes it as ``index.html``."""
    page.heading("Command")
    page.code(command)
    return page.write(folder / "index.html")
