"""``vitsplit info A B ...``: cost of several bundles or recipes on one backbone, compared with separate models."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitsplit.cli.info_subject import Subject, find_subject
from vitsplit.errors import ConfigError
from vitsplit.files import is_address
from vitsplit.recipes import RECIPES


def show_shared(targets: Sequence[str], size: tuple[int, int], *, as_json: bool) -> int:
    """Prints the comparison for images of a size (height and width in pixels); returns the exit status."""
    from vitsplit.analysis.sharing import SharedBundle, compare_sharing

    sharers = {
        name: SharedBundle(subject.config, subject.description or _classes(subject.num_classes), subject.used_layers)
        for name, subject in _subjects(targets).items()
    }
    facts = compare_sharing(sharers, size)
    if as_json:
        print(json.dumps(facts))
    else:
        _print_table(facts, size)
    return 0


def _subjects(targets: Sequence[str]) -> dict[str, Subject]:
    """Recipes by name, and bundles by the names that they have when loaded together."""
    from vitsplit.inference.loading import read_bundles

    subjects: dict[str, Subject] = {}
    for target in targets:
        if target in subjects:
            raise ConfigError(f"The recipe {target} was given twice. Give it once.")
        # `find_subject` raises if it is neither.
        if target in RECIPES or not (is_address(target) or Path(target).exists()):
            subjects[target] = find_subject(target)
    runs = [target for target in targets if target not in subjects]
    for name, (folder, _) in read_bundles(runs).items() if runs else ():
        subjects[name] = find_subject(str(folder))
    return subjects


def _classes(count: int) -> dict[str, Any]:
    """The task description of a bundle with ``count`` classes."""
    return {"classes": [f"class {k}" for k in range(count)], "colours": [[0, 0, 0]] * count}


def _print_table(facts: Mapping[str, Any], size: Sequence[int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from vitsplit.inference.shared_pass import join_names

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
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"One image of {size[0]} x {size[1]} (height x width) requires")
    counted = Counter((*each["size"], each["gmacs"], *each["bundles"]) for each in facts["passes"])
    for (height, width, gmacs, *users), count in counted.items():
        noun = "pass" if count == 1 else "passes"
        console.print(f"  {count} {noun} at {height} x {width}, {gmacs:.1f} G, for {join_names(users)}")
    for name, bundle in facts["bundles"].items():
        console.print(f"  the head of {name}, {bundle['gmacs']['head']:.1f} G")
    console.print(f"Upper bound of the speedup over separate models, from multiply-adds: {facts['time_bound']:.2f}")
