"""What the reports of all benchmarks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vitsplit.report import Page
from vitsplit.training.serialise import json_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def write_files(folder: Path, name: str, figures: Mapping[str, Any], picture: Figure) -> None:
    """Writes ``NAME.json`` and ``NAME.png`` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json_text(figures, indent=2) + "\n", encoding="utf-8")
    picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")


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
