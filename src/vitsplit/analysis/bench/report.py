"""What the reports of all benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitsplit.report import Page, screen_table

Rows = Sequence[Sequence[str]]
"""A table: its head, then its rows."""


def on_screen(rows: Rows) -> Table:
    """A table for the terminal, with its rows side by side: what is compared is few, and its figures are many."""
    head, *columns = zip(*rows, strict=True)
    return screen_table(head, columns, no_wrap=True, box=SIMPLE_HEAD, show_edge=False)


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


def finish(page: Page, folder: Path, command: str, data: Mapping[str, Any]) -> Path:
    """Ends a page with the command that made it, and writes it with its figures."""
    page.heading("Command")
    page.code(command)
    return page.write(folder, data)
