"""The progress bar of commands."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(text: str = "{task.description}", *, in_terminals_only: bool = False) -> Progress:
    """A progress bar on standard error, since standard output is for results; it disappears at the end.

    Args:
        text: What is said before the bar, see ``rich.progress.TextColumn``.
        in_terminals_only: Whether nothing is shown if standard error is not a terminal.
    """
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=in_terminals_only and not console.is_terminal)
