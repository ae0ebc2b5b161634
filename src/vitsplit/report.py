"""Self-contained HTML pages: one file, no network, readable in light and dark."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vitsplit.atomic_files import write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dce1; --paper: #fcfcfd; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #b0b4ba; --line: #363a3f; --paper: #111113;
  --card: #18191b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 12px; }
p { margin: 8px 0; max-width: 75ch; } .soft { color: var(--soft); }
code, pre { font: 13px/1.5 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px; }
.figures b { display: block; font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; }
.figures span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 16px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.row { display: grid; gap: 8px; margin: 4px 0 14px; } figure { margin: 0; }
figure img, .plot svg { width: 100%; height: auto; display: block; border-radius: 6px; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 8px; max-width: 820px; }
.beside { display: grid; grid-template-columns: minmax(160px, 320px) 1fr; gap: 8px 28px; margin: 0 0 28px; }
.beside th, .beside td { text-align: left; white-space: normal; }
@media (max-width: 720px) { .beside { grid-template-columns: 1fr; } }
figcaption { font-size: 12.5px; color: var(--soft); padding-top: 2px; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 10px 0; font-size: 13px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; }
"""


class Page:
    """A page that is written from top to bottom."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if subtitle:
            self.text(subtitle, soft=True)

    def heading(self, text: str) -> None:
        """A section's heading."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, *, soft: bool = False) -> None:
        """A paragraph; `code` in backticks."""
        marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
        self._parts.append(f'<p class="soft">{marked}</p>' if soft else f"<p>{marked}</p>")

    def link(self, text: str, address: str) -> None:
        """A paragraph that leads to another page, whose address is relative to this one."""
        self._parts.append(f'<p><a href="{html.escape(address)}">{html.escape(text)}</a></p>')

    def code(self, text: str) -> None:
        """Preformatted text."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Large figures: (value, what it is)."""
        cells = "".join(
            f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for value, name in figures
        )
        self._parts.append(f'<div class="figures">{cells}</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is left-aligned, the others hold figures."""
        self._parts.append(_table(head, rows))

    def legend(self, entries: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
        """Names with their colours."""
        items = "".join(
            f'<span><i style="background:rgb({red},{green},{blue})"></i>{html.escape(name)}</span>'
            for name, (red, green, blue) in entries
        )
        self._parts.append(f'<div class="legend">{items}</div>')

    def pictures(self, pictures: Sequence[tuple[Image.Image, str]]) -> None:
        """Pictures side by side, with captions."""
        cells = "".join(_figure(picture, caption) for picture, caption in pictures)
        self._parts.append(f'<div class="row" style="grid-template-columns:repeat({len(pictures)},1fr)">{cells}</div>')

    def told(self, picture: Image.Image, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A picture, and beside it a table of what is said about it."""
        self._parts.append(f'<div class="beside">{_figure(picture, caption)}{_table(head, rows)}</div>')

    def plot(self, figure: Figure) -> None:
        """A matplotlib figure, as vector graphics."""
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight")
        svg = buffer.getvalue()
        self._parts.append(f'<div class="plot">{svg[svg.index("<svg") :]}</div>')

    def write(self, path: Path) -> Path:
        """Writes the page and returns its path.

        Raises:
            RunError: It could not be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join(self._parts)
        write_text(
            path, f'<!doctype html><html lang="en"><head>{head}</head><body><main>\n{body}\n</main></body></html>\n'
        )
        return path


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{body}</table></div>'


def _figure(picture: Image.Image, caption: str) -> str:
    said = html.escape(caption)
    return f'<figure><img alt="{said}" src="{_data_uri(picture)}"><figcaption>{said}</figcaption></figure>'


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # Flat colours (masks) stay sharp and small as PNG; photographs as JPEG.
    if picture.mode == "P":
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_files(folder: Path, name: str, figures: Any, picture: Figure) -> None:
    """Writes what a page tells of beside it: ``NAME.json`` and ``NAME.png`` in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", figures)
    picture.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
