"""``vitsplit info A B ...``: what several bundles or recipes cost on one backbone, against separate models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitsplit.cli.info import Subject, find_subject
from vitsplit.errors import ConfigError
from vitsplit.recipes import RECIPES

DESCRIPTION = """\
Says what several bundles or recipes cost on one backbone, which is in memory once and runs once per image and input
size, against as many separate models. Shapes are enough for that: neither weights nor data are read.

  vitsplit info runs/rooms runs/depth
  vitsplit info laptop-segmentation laptop-depth --size 252 336
"""


def main(argv: list[str]) -> int:
    """Runs the verb for several targets."""
    parser = argparse.ArgumentParser(
        prog="vitsplit info", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="+", metavar="RECIPE|RUN")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="the size at which images enter the backbone, of all bundles (default: of each one its crop)",
    )
    options = parser.parse_intermixed_args(argv)

    from vitsplit.analysis.sharing import Sharer, compare_sharing

    sharers = {}
    for name, subject in _subjects(options.targets).items():
        height, width = options.size or subject.config.task.crop_size
        sharers[name] = Sharer(
            subject.config, (height, width), subject.num_classes, subject.description, subject.used_layers
        )
    facts = compare_sharing(sharers)
    if options.json:
        print(json.dumps(facts))
    else:
        _print_table(facts)
    return 0


def _subjects(targets: Sequence[str]) -> dict[str, Subject]:
    """Recipes by their names, and bundles by the names that they would have when they are loaded together."""
    from vitsplit.inference.multitask import read_bundles

    subjects: dict[str, Subject] = {}
    for target in targets:
        if target in subjects:
            raise ConfigError(f"{target} is named twice. Name each recipe once.")
        if target in RECIPES or not Path(target).exists():  # of what is neither, `find_subject` says so
            subjects[target] = find_subject(target, [])
    runs = [target for target in targets if target not in subjects]
    for name, (folder, _) in read_bundles(runs).items() if runs else ():
        subjects[name] = find_subject(str(folder), [])
    return subjects


def _print_table(facts: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    names = list(facts["bundles"])
    table = Table(title=f"{', '.join(names)} on {facts['backbone']}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", style="bold", no_wrap=True)
    for column in ("one backbone", "separate models", "saved"):
        table.add_column(column, justify="right")
    millions, megabytes = 1e6, 1e6
    for label, figures, unit, scale in (
        ("parameters", facts["parameters"], "M", millions),
        ("weights, fp32", facts["bytes"]["fp32"], "MB", megabytes),
        ("weights, backbone in bf16", facts["bytes"]["bf16"], "MB", megabytes),
        ("multiply-adds per image", facts["gmacs"], "G", 1.0),
    ):
        shared, separate = figures["shared"] / scale, figures["separate"] / scale
        table.add_row(label, f"{shared:.1f} {unit}", f"{separate:.1f} {unit}", f"{1 - shared / separate:.0%}")
    console = Console()
    console.print(table)
    for each in facts["passes"]:
        size = " x ".join(map(str, each["size"]))
        users = ", ".join(f"{name} (head {facts['bundles'][name]['gmacs']['head']:.1f} G)" for name in each["bundles"])
        console.print(f"one pass at {size}, {each['gmacs']:.1f} G, for {users}", highlight=False, soft_wrap=True)
    console.print(
        f"at most {facts['time_bound']:.2f} times as fast as separate models, where time goes by multiply-adds",
        highlight=False,
    )
