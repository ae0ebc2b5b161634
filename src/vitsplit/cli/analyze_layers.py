"""``vitsplit analyze layers``: which layers to copy and to read, for a backbone and your images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from pydantic import Field

from vitsplit.cli.values import ImageSize, Limit, Switch, writable
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
    out: Path = Path("analysis/layers"),
    size: ImageSize | None = None,
    batch_size: Annotated[int, Field(ge=4, le=2**16)] = 8,
    limit: Limit = 128,
    random_weights: Switch = False,
    weights: Path | None = None,
    device: str | None = None,
) -> int:
    """Propose K_t and the prior layers for a backbone and your images, each with its cost.

    K_t is what comes after the point where CKA divides the layers in two; the prior layers are those least alike. The
    recipe's own choice, the paper's rule of thumb and, of a run with --selection gate, what its gate reads stand
    beside. `vitsplit train --layers auto` takes the first proposal. Writes a page, a picture and JSON.

    Args:
        images: Folder of images; folders inside it count too.
        recipe: Task, crop, K_p and b, for the choice and its cost; laptop-segmentation unless a run is given.
        run: A run whose backbone and settings are taken, and whose gate is read out.
        backbone: Another backbone than the recipe's or the run's.
        num_prior_layers: K_p; the recipe's.
        first_prior_layer: b; the recipe's.
        out: Folder to write to.
        size: Height and width that images are resized to; the recipe's crop.
        batch_size: Images that are compared at a time, at least 4.
        limit: The most images to use, drawn evenly; 0: all.
        random_weights: Use random weights: for tests of the machinery, the result means nothing.
        weights: File or folder of the backbone's weights; of a run that was trained with --weights.
        device: Where to compute; the first GPU, else the processor.
    """
    from rich.console import Console
    from rich.table import Table

    from vitsplit.analysis.auto_layers import check_choice
    from vitsplit.analysis.cka import compare_layers
    from vitsplit.analysis.images import batches_to_compare, read_batch
    from vitsplit.analysis.layers_report import table, write_layers
    from vitsplit.analysis.proposals import gate_weights, propose
    from vitsplit.backbone import open_backbone
    from vitsplit.bundle import find_bundle, read_card
    from vitsplit.engine.override import override
    from vitsplit.errors import ConfigError
    from vitsplit.inference.loading import choose_device, weights_of

    where = choose_device(device)
    files = batches_to_compare(images, limit, batch_size)
    config, description, is_gated = _start(recipe, run)
    asked = {
        "backbone": backbone,
        "num_prior_layers": num_prior_layers,
        "first_prior_layer": first_prior_layer,
        "random_weights": random_weights or None,
    }
    config = override(config, {name: value for name, value in asked.items() if value is not None})
    check_choice(config, "analyze layers")
    writable(out)
    height, width = size or config.task.crop_size
    if run is not None and backbone is None and not random_weights:
        # Whatever the run's card says of them: it decides nothing about what is opened.
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
        raise ConfigError(f"{run}: its gate is over {len(gate_LJ)} layers, and {model.name} has {model.num_layers}.")
    proposals = propose(config, found.cka_MM, description=description, gate_LJ=gate_LJ)
    page = write_layers(found, proposals, out, images=str(images), task=config.task.name, gate_LJ=gate_LJ)
    head, rows = table(proposals)
    shown = Table(*head, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    for proposal in proposals:
        print(f"\n{proposal.name}: {proposal.why}.\n  {proposal.flags}")
    print(f"\npage: {page}")
    return 0


def _start(recipe: str | None, run: Path | None) -> tuple[TrainConfig, Any, bool]:
    """The settings to start from, what the task says of its data, and whether there is a gate to read out."""
    from vitsplit.bundle import read_card
    from vitsplit.errors import ConfigError
    from vitsplit.recipes import recipe as named_recipe

    if run is None:
        return named_recipe(recipe or "laptop-segmentation"), None, False
    if recipe is not None:
        raise ConfigError("The settings are those of a recipe or of a run: give --recipe or --run.")
    card = read_card(run)
    return card.config, card.description, card.config.method != card.config.method.without_gate(None)
