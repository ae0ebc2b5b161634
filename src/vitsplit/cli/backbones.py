"""``vitsplit backbones``: the frozen models that have short names."""

from __future__ import annotations

import dataclasses
import json as json_format
import sys

from vitsplit.backbone.catalog import CATALOG
from vitsplit.cli.values import Switch


def backbones(*, json: Switch = False) -> int:
    """List the frozen models that have short names, with sizes and licences.

    Parameters are those of the frozen trunk as it is used (embeddings, blocks, final norm), without classifiers, pools
    and necks. Gated: the publisher gives the weights only to accounts that accepted the licence.

    Any other timm name of a plain ViT (DeiT, AugReg, CLIP, MAE, ...), an EVA-02 or DINOv3, or a SAM ViT works as a
    --backbone too. Weights are looked for in the local hub cache, then on the hub; --weights FILE comes before both.

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

    # Notes are footnotes: several names share one, and a wide column would break the others.
    notes = list(dict.fromkeys(spec.note for spec in CATALOG.values() if spec.note))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("name", style="cyan", no_wrap=True)
    for title in ("width", "depth", "patch", "parameters"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("licence", "gated", "note"):
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
        Text("Any other timm name of a plain, EVA-02, DINOv3 or SAM ViT works too. --json prints everything.")
    )
