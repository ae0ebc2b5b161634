"""Reports: self-contained HTML pages, with their figures as JSON and PNG beside them, and tables for the terminal."""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.table import Table

from vitsplit.atomic_files import write_json, write_text

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure


class Page:
    """A page that is written from top to bottom; ``templates/page.html`` makes HTML of it.

    Args:
        title: The page's heading.
        subtitle: A paragraph below it.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._blocks: list[dict[str, Any]] = []
        self._plots: dict[str, Figure] = {}
        if subtitle:
            self.text(subtitle, soft=True)

    def heading(self, text: str) -> None:
        """A section's heading."""
        self._add("heading", text=text)

    def text(self, text: str, *, soft: bool = False) -> None:
        """A paragraph; `code` in backticks."""
        self._add("text", pieces=re.split(r"`([^`]+)`", text), soft=soft)

    def link(self, text: str, address: str) -> None:
        """A paragraph that leads to another page, whose address is relative to this one."""
        self._add("link", text=text, address=address)

    def code(self, text: str) -> None:
        """Preformatted text."""
        self._add("code", text=text)

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Large figures: (value, what it is)."""
        self._add("figures", figures=figures)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is left-aligned, the others hold figures."""
        self._add("table", head=head, rows=rows)

    def legend(self, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
        """Names with their colors."""
        self._add("legend", entries=entries)

    def pictures(self, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        """Pictures side by side, with captions."""
        self._add("pictures", pictures=[(_data_uri(picture), caption) for picture, caption in pictures])

    def picture_beside_table(
        self, picture: Image.Image, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """A picture, and beside it a table of what is said about it."""
        self._add("picture beside table", source=_data_uri(picture), caption=caption, head=head, rows=rows)

    def plot(self, figure: Figure, name: str = "") -> None:
        """A matplotlib figure, as vector graphics; with a name it is also written as ``NAME.png`` beside the page."""
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")
        svg = buffer.getvalue()
        self._add("plot", svg=svg[svg.index("<svg") :])
        if name:
            self._plots[name] = figure

    def write(self, folder: Path, data: Mapping[str, Any] | None = None) -> Path:
        """Writes the page, its named plots and ``NAME.json`` of each of ``data`` into a folder, which is made.

        Returns:
            The page, ``index.html``.

        Raises:
            RunError: A file could not be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in (data or {}).items():
            write_json(folder / f"{name}.json", value)
        for name, figure in self._plots.items():
            figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
        page = folder / "index.html"
        write_text(page, _template().render(title=self.title, blocks=self._blocks))
        return page

    def _add(self, kind: str, **data: Any) -> None:
        self._blocks.append({"kind": kind, **data})


@functools.cache
def _template() -> jinja2.Template:
    import jinja2  # not needed to import a task

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitsplit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # Flat colors (masks) stay sharp and small as PNG; photographs as JPEG.
    if picture.mode == "P":
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def screen_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, no_wrap: bool = False, **style: Any) -> Table:
    """A table for the terminal; the first column is left-aligned, the others hold figures.

    Args:
        head: Names of the columns.
        rows: Cells.
        no_wrap: Whether a cell stays on one line.
        style: Of ``rich.table.Table``.
    """
    table = Table(**style)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", no_wrap=no_wrap)
    for row in rows:
        table.add_row(*row)
    return table


def spread_evenly(count: int, total: int) -> list[int]:
    """At most ``count`` of ``total`` indices, from the first to the last."""
    indices: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return indices
