"""``vitsplit analyze layers``: proposes K_t and prior layers for a backbone and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field

from vitsplit.cli.values import ImageSize, Limit, Switch, make_writable
from vitsplit.methods.split.config import split_settings

if TYPE_CHECKING:
    from vitsplit.train_config import TrainConfig


def layers(
    images: tyro.conf.Positional[Path],
    /,
    recipe: str | None = None,
    run: Path | None = None,
    backbone: str | None = None,
    num_prior_layers: Annotated[int, Field(ge=0, le=1000)] | None = None,
    first_prior_layer: Annotated[int, Field(ge=0, le=1000)] | None = None,
    data: Path | None = None,
    max_minutes: Annotated[float, Field(gt=0, le=1e6)] = 10.0,
    out: Path = Path("analysis/layers"),
    size: ImageSize | None = None,
    batch_size: Annotated[int, Field(ge=4, le=2**16)] = 8,
    limit: Limit = 128,
    random_weights: Switch = False,
    weights: Path | None = None,
    device: str | None = None,
) -> int:
    """Propose K_t and the prior layers for a backbone and your images, with their cost.

    K_t is the number of late layers in the best split of the layers by CKA; the prior layers are the least alike ones.
    For comparison the recipe's layers, the paper's rule of thumb and, for a run with --selection gate, the layers of
    its gate are shown. With labels (--data), short runs measure the quality for K_t from 0 to all layers against the
    cost of one more head on a shared pass. Writes a page, pictures and JSON.

    Examples:
        vitsplit analyze layers my_data/images --backbone dinov2-small
        vitsplit analyze layers my_data/images --data my_data --max-minutes 10

    Args:
        images: Folder of images, including subfolders.
        recipe: Recipe with the task, crop, K_p and b; laptop-segmentation without --run.
        run: A run whose backbone and settings are used, and whose gate is evaluated.
        backbone: Backbone; None: that of the recipe or run.
        num_prior_layers: K_p; None: that of the recipe or run.
        first_prior_layer: b; None: that of the recipe or run.
        data: Labeled data set for the task of the recipe or run, for short runs.
        max_minutes: Time of all short runs together.
        out: Folder to write to.
        size: Height and width that images are resized to; None: the crop of the recipe or run.
        batch_size: Batch size, at least 4.
        limit: Maximum number of images, evenly spaced; 0: all.
        random_weights: Use random weights, for tests only: results are meaningless.
        weights: File or folder of the backbone's weights, if the run was trained with --weights.
        device: The device; None: the first GPU, else the CPU.
    """
    from rich.console import Console
    from rich.table import Table

    from vitsplit.analysis.cka import compare_layers
    from vitsplit.analysis.images import batches_to_compare, read_batch
    from vitsplit.analysis.layer_quality import advise
    from vitsplit.analysis.layers_report import table, write_layers
    from vitsplit.analysis.proposals import gate_weights, propose
    from vitsplit.analysis.short_runs import measure_layers
    from vitsplit.analysis.training_similarity import check_choice
    from vitsplit.backbone import open_backbone
    from vitsplit.bundle import find_bundle, read_card
    from vitsplit.engine.override import override
    from vitsplit.errors import ConfigError
    from vitsplit.inference.loading import choose_device, weights_of

    where = choose_device(device)
    files = batches_to_compare(images, limit, batch_size)
    config, description, is_gated = _starting_point(recipe, run)
    changes = {
        "backbone": backbone,
        "num_prior_layers": num_prior_layers,
        "first_prior_layer": first_prior_layer,
        "random_weights": True if random_weights else None if weights is None else False,
    }
    config = override(config, {name: value for name, value in changes.items() if value is not None})
    check_choice(config, "analyze layers")
    make_writable(out)
    height, width = size or config.task.crop_size
    if run is not None and backbone is None and not random_weights:
        # Paths in a bundle's card are not opened.
        folder = find_bundle(run)
        found_weights = weights_of(read_card(folder), folder, weights)
    else:
        found_weights = weights
    model = open_backbone(config.backbone, weights=found_weights).to(where)
    batches = ([read_batch(each, (height, width))] for each in files)
    found = compare_layers(
        {config.backbone.backbone: model},
        batches,
        normed=split_settings(config.method, "the choice of layers").tap_norm,
    )
    gate_LJ = gate_weights(run) if run is not None and is_gated else None
    if gate_LJ is not None and len(gate_LJ) != model.num_layers:
        raise ConfigError(f"{run}: its gate has {len(gate_LJ)} layers, but {model.name} has {model.num_layers}.")
    proposals = propose(config, found.cka_MM, description=description, gate_LJ=gate_LJ)
    qualities = (
        ()
        if data is None
        else measure_layers(
            override(config, {"weights": None if found_weights is None else str(found_weights)}),
            data,
            out,
            max_minutes=max_minutes,
        )
    )
    page = write_layers(
        found, proposals, out, images=str(images), task=config.task.name, gate_LJ=gate_LJ, qualities=qualities
    )
    head, rows = table(proposals)
    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    for proposal in proposals:
        print(f"\n{proposal.name}: {proposal.why}.\n  {proposal.flags}")
    if qualities:
        print(f"\n{advise(qualities)}")
    print(f"\npage: {page}")
    return 0


def _starting_point(recipe: str | None, run: Path | None) -> tuple[TrainConfig, Any, bool]:
    """The configuration, the task's description of its data, and whether the run has a gate."""
    from vitsplit.bundle import read_card
    from vitsplit.errors import ConfigError
    from vitsplit.recipes import recipe as named_recipe

    if run is None:
        return named_recipe(recipe or "laptop-segmentation"), None, False
    if recipe is not None:
        raise ConfigError("--recipe and --run were both given. Give one of them.")
    card = read_card(run)
    return card.config, card.description, card.config.method != card.config.method.without_gate(None)
