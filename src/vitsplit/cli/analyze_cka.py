"""``vitsplit analyze cka``: similarity of the layers of frozen models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vitsplit.cli.values import ImageSize, Limit, Switch, make_writable


def cka(
    images: tyro.conf.Positional[Path],
    /,
    backbones: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ("dinov2-small",),
    out: Path = Path("analysis/cka"),
    size: ImageSize = (252, 336),
    batch_size: Annotated[int, Field(ge=4, le=2**16)] = 16,
    limit: Limit = 512,
    normed: Switch = False,
    random_weights: Switch = False,
    device: str | None = None,
) -> int:
    """Compare all layers of one or several frozen models on your images (Figures 3, 12 and 15).

    Computes unbiased linear CKA in memory independent of the number of images, and the best split of each model's
    layers into early and late ones. Writes a page, a picture and JSON.

    Args:
        images: Folder of images, including subfolders.
        backbones: Short names (`vitsplit backbones` lists them) or timm names.
        out: Folder to write to.
        size: Height and width that images are resized to; padded to each model's patch size.
        batch_size: Batch size, at least 4.
        limit: Maximum number of images, evenly spaced; 0: all.
        normed: Apply the model's final norm to each layer, as for the heads.
        random_weights: Use random weights, for tests only: results are meaningless.
        device: The device; None: the first GPU, else the CPU.
    """
    from rich.console import Console
    from rich.progress import track

    from vitsplit.analysis.cka import compare_layers
    from vitsplit.analysis.images import batches_to_compare, read_batch
    from vitsplit.analysis.layers_report import describe_split, write_cka
    from vitsplit.backbone import load_backbone
    from vitsplit.inference.loading import choose_device

    where = choose_device(device)
    files = batches_to_compare(images, limit, batch_size)
    make_writable(out)
    models = {name: load_backbone(name, random_weights=random_weights).to(where) for name in dict.fromkeys(backbones)}
    batches = track(files, "comparing layers", console=Console(stderr=True), transient=True)
    found = compare_layers(models, ([read_batch(each, size)] * len(models) for each in batches), normed=normed)
    page = write_cka(found, out, images=str(images), normed=normed)
    for name in found.layers:
        print(describe_split(found, name))
    print(f"page: {page}")
    return 0
