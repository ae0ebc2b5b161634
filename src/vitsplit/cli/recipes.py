"""``vitsplit recipes``: lists the recipes."""

from __future__ import annotations

import json as json_format
from typing import Any

from vitsplit.backbone.catalog import CATALOG
from vitsplit.cli.values import Switch
from vitsplit.methods.split.config import split_settings
from vitsplit.methods.split.layers import select_layers
from vitsplit.recipes import RECIPES


def recipes(*, json: Switch = False) -> int:
    """List the recipes: those of the paper's tables, and small ones for a laptop.

    A recipe is a complete training configuration. `vitsplit info RECIPE` shows its cost, and `vitsplit train TASK
    --recipe RECIPE` trains with it.

    Args:
        json: Print JSON instead of a table.
    """
    rows = [describe(name) for name in RECIPES]
    if json:
        print(json_format.dumps(rows))
    else:
        _print_table(rows)
    return 0


def describe(name: str) -> dict[str, Any]:
    """JSON-compatible description of a recipe; ``summary`` is the first line of its docstring."""
    config = RECIPES[name]()
    split = split_settings(config.method, f"recipe {name}")
    layers = select_layers(split, CATALOG[config.backbone.backbone].num_layers)
    return {
        "name": name,
        "backbone": config.backbone.backbone,
        "num_tuned_layers": split.num_tuned_layers,
        "num_prior_layers": split.num_prior_layers,
        "selection": split.selection,
        "prior_layers": list(layers),
        "crop_size": list(config.task.crop_size),
        "steps": config.loop.steps,
        "batch_size": config.loop.batch_size,
        "summary": (RECIPES[name].__doc__ or "").partition("\n")[0],
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(_line("recipe", "backbone", "K_t", "prior layers", "crop", "steps"), style="bold"))
    for row in rows:
        layers = "gate" if row["selection"] == "gate" else _format_layers(row["prior_layers"])
        crop = "x".join(map(str, row["crop_size"]))
        values = (row["name"], row["backbone"], row["num_tuned_layers"], layers, crop, row["steps"])
        console.print(_line(*map(str, values)))
        console.print(Padding(Text(row["summary"], style="dim"), (0, 0, 0, 2)))


def _line(*columns: str) -> str:
    """A row of the table, 80 characters wide."""
    return "{:21} {:12} {:>3} {:25} {:9} {:>5}".format(*columns)


def _format_layers(layers: list[int]) -> str:
    """``2 5 8 11``; more than four consecutive layers as a range: ``26-39``."""
    if len(layers) > 4 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return " ".join(map(str, layers))
