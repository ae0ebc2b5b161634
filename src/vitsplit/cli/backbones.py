"""``vitsplit backbones``: the catalog of frozen models."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys

from vitsplit.backbone.catalog import CATALOG
from vitsplit.cli.values import Switch


def backbones(*, json: Switch = False) -> int:
    """List the frozen models of the catalog, with sizes and licenses.

    Parameters are those of the frozen trunk (embeddings, blocks, final norm), without classifiers, pooling and necks.
    Gated: the weights are available only to accounts that accepted the license.

    --backbone also accepts any other timm name of a plain ViT (DeiT, AugReg, CLIP, MAE, ...), EVA-02, DINOv3 or SAM
    ViT. Weights are read from --weights FILE if given, else from the hub's cache, else downloaded from the hub.

    Args:
        json: Print a JSON list of objects.
    """
    if json:
        json_format.dump([dataclasses.asdict(spec) for spec in CATALOG.values()], sys.stdout, indent=2)
        print()
    else:
        _print_table()
    return 0


def _print_table() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Notes are footnotes, since several models share one and a wide column would wrap the others.
    notes = list(dict.fromkeys(spec.note for spec in CATALOG.values() if spec.note))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", style="cyan", no_wrap=True)
    for title in ("width", "depth", "patch", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("license", "gated", "note"):
        table.add_column(title, no_wrap=True)
    for spec in CATALOG.values():
        mark = f"[{notes.index(spec.note) + 1}]" if spec.note else ""
        gated = "yes" if spec.gated else "no"
        sizes = (str(spec.width), str(spec.num_layers), str(spec.patch_size), f"{spec.parameters / 1e6:,.1f} M")
        table.add_row(spec.name, *sizes, spec.license, gated, Text(mark))
    console = Console()
    console.print(table)
    console.print()
    for number, note in enumerate(notes, start=1):
        console.print(Text(f"[{number}] {note}"))
    console.print(
        Text("Other timm names of plain, EVA-02, DINOv3 or SAM ViTs are supported too. --json prints all fields.")
    )
