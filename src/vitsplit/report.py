"""Reports: self-contained HTML pages, with data as JSON and plots as PNG files, and tables for the terminal."""

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
    """A page of consecutive blocks, rendered with ``templates/page.html``.

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
        """Adds a section heading."""
        self._add("heading", text=text)

    def text(self, text: str, *, soft: bool = False) -> None:
        """Adds a paragraph; `code` in backticks."""
        self._add("text", pieces=re.split(r"`([^`]+)`", text), soft=soft)

    def link(self, text: str, address: str) -> None:
        """Adds a paragraph with a link to another page; the address is relative to this one."""
        self._add("link", text=text, address=address)

    def code(self, text: str) -> None:
        """Adds preformatted text."""
        self._add("code", text=text)

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Adds key figures in large type: pairs of value and label."""
        self._add("figures", figures=figures)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Adds a table; the first column is left-aligned, the others (numbers) right-aligned."""
        self._add("table", head=head, rows=rows)

    def legend(self, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
        """Adds a legend: names with their colors."""
        self._add("legend", entries=entries)

    def pictures(self, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        """Adds pictures side by side, with captions."""
        self._add("pictures", pictures=[(_data_uri(picture), caption) for picture, caption in pictures])

    def picture_beside_table(
        self, picture: Image.Image, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None:
        """Adds a picture with a table next to it."""
        self._add("picture beside table", source=_data_uri(picture), caption=caption, head=head, rows=rows)

    def plot(self, figure: Figure, name: str = "") -> None:
        """Adds a matplotlib figure as SVG; with a name it is also saved as ``NAME.png`` in the page's folder."""
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")
        figure.set_layout_engine("none")  # the PNG file has the same layout, which takes longer than drawing
        svg = buffer.getvalue()
        self._add("plot", svg=svg[svg.index("<svg") :])
        if name:
            self._plots[name] = figure

    def write(self, folder: Path, data: Mapping[str, Any] | None = None) -> Path:
        """Writes the page, its named plots and ``NAME.json`` of each item of ``data`` into a folder, which is created.

        Returns:
            Path of the page, ``index.html``.

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
    import jinja2  # optional until a page is written

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitsplit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html")


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # PNG for palette images (masks), JPEG for photographs.
    if picture.mode == "P":
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def screen_table(head: Sequence[str], rows: Iterable[Sequence[str]], **style: Any) -> Table:
    """A table for the terminal; the first column is left-aligned, the others (numbers) right-aligned.

    If the terminal is too narrow, headings and the first column are wrapped, and numbers are not.

    Args:
        head: Column names.
        rows: Rows of cells.
        style: Arguments of ``rich.table.Table``.
    """
    table, rows = Table(**style), [tuple(row) for row in rows]
    for index, name in enumerate(head):
        widest = max((len(row[index]) for row in rows), default=0)
        table.add_column(name, justify="right" if index else "left", min_width=widest if index else None)
    for row in rows:
        table.add_row(*row)
    return table


def spread_evenly(count: int, total: int) -> list[int]:
    """At most ``count`` evenly spaced indices of ``range(total)``, including the first and the last."""
    indices: list[int] = np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist()
    return indices
