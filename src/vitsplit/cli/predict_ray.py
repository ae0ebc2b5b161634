"""``vitsplit predict --engine ray``: many images on one or several machines, into Parquet files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsplit.cli.progress import progress_bar
from vitsplit.cluster.options import RayOptions
from vitsplit.extras import require

if TYPE_CHECKING:
    from vitsplit.cluster.items import Item


def predict_with_ray(
    inputs: Sequence[str],
    out: Path,
    made_by: Mapping[str, Any],
    settings: Mapping[str, Any],
    options: RayOptions,
    *,
    overwrite: bool,
    dry_run: bool,
) -> int:
    """Predicts the inputs whose rows are missing in ``out``, or estimates what that takes; returns the exit status.

    Args:
        inputs: See ``find_items``.
        out: The output folder.
        made_by: Identification of bundles and settings.
        settings: Arguments of ``vitsplit.cluster.Predictor``.
        options: Settings of Ray.
        overwrite: Remove earlier rows.
        dry_run: Print an estimate only.
    """
    require("--engine ray", "ray", "pyarrow", extra="ray")
    from vitsplit.cluster.items import find_items
    from vitsplit.cluster.parquet_folder import read_done, take_over
    from vitsplit.cluster.ray_engine import Totals, run

    items = find_items(inputs, out, options.image_column)
    if dry_run:
        done = set() if overwrite else read_done(out, made_by)
        return _print_estimate([item for item in items if item.id not in done], settings, options)
    with take_over(out, made_by, overwrite=overwrite) as (destination, done):
        todo = [item for item in items if item.id not in done]
        totals = Totals()
        if todo:
            with progress_bar("predicting") as progress:
                bar = progress.add_task("", total=len(todo))
                totals = run(
                    todo, settings, destination, options, lambda rows: progress.advance(bar, rows), made_by["bundles"]
                )
    earlier = len(items) - len(todo)
    before = f", {earlier} of them predicted earlier" if earlier else ""
    print(f"{totals.rows + earlier} of {len(items)} images{before}: {out}")
    if totals.errors:
        print(f"{totals.errors} rows have an error and no predictions, such as: {totals.first}", file=sys.stderr)
    return 1 if totals.errors else 0


def _print_estimate(todo: Sequence[Item], settings: Mapping[str, Any], options: RayOptions) -> int:
    from vitsplit.cluster.ray_engine import estimate

    if not todo:
        print("all images have predictions")
        return 0
    found = estimate(todo, settings, options)
    plan = found.plan
    hours = len(todo) * found.seconds / plan.count / 3600
    print(f"{len(todo)} images on {plan.count} actors with {plan.cpus} CPUs and {plan.gpus:g} GPUs each")
    print(f"measured on one actor: {found.seconds:.3f} s and {found.file_bytes / 1e3:.1f} kB per image")
    print(f"  ({found.measured} images, {found.failed} of them without predictions)")
    print("estimate, if actors do not slow each other down:")
    print(f"  time  {hours:.2f} h ({plan.count / found.seconds:.1f} images/s), without loading the model")
    print(f"  disk  {len(todo) * found.file_bytes / 1e9:.3f} GB")
    if options.price_per_hour is not None:
        print(f"  cost  {hours * options.price_per_hour:.2f} (at {options.price_per_hour:g} per hour)")
    return 0
