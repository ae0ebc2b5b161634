"""``vitsplit analyze``: what frozen models see, and how alike their layers are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from torch import Tensor


def cka(
    images: tyro.conf.Positional[Path],
    /,
    backbones: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = ("dinov2-small",),
    out: Path = Path("analysis/cka"),
    size: Annotated[tuple[int, int], tyro.conf.arg(metavar="H W")] = (252, 336),
    batch_size: int = 16,
    limit: int = 512,
    normed: tyro.conf.FlagCreatePairsOff[bool] = False,
    random_weights: tyro.conf.FlagCreatePairsOff[bool] = False,
    device: str | None = None,
) -> int:
    """Compare all layers of one or several frozen models on your images (Figures 3, 12 and 15).

    Linear CKA, unbiased, in memory that does not grow with the number of images. Writes a page, a picture and JSON, and
    says where the layers of each model are best divided in two.

    Args:
        images: Folder of images; folders inside it count too.
        backbones: Short names (`vitsplit backbones` lists them) or timm names.
        out: Folder to write to.
        size: Height and width that images are resized to; each model pads them to its patch size.
        batch_size: Images that are compared at a time, at least 4.
        limit: The most images to use, drawn evenly; 0: all.
        normed: Compare layers after the model's final norm, as the heads read them.
        random_weights: Use random weights: for tests of the machinery, the result means nothing.
        device: Where to compute; the first GPU, else the processor.
    """
    from rich.console import Console
    from rich.progress import track

    from vitsplit.analysis.cka import compare_layers
    from vitsplit.analysis.cka_report import describe_split, write_cka
    from vitsplit.backbone import load_backbone
    from vitsplit.errors import ConfigError
    from vitsplit.inference.predictor import choose_device

    if batch_size < 4:
        raise ConfigError(f"--batch-size {batch_size}: layers are compared on at least 4 images at a time.")
    files = choose_files(images, limit)
    if len(files) < batch_size:
        raise ConfigError(f"{images}: {len(files)} images are fewer than --batch-size {batch_size}. Give more images.")
    where = choose_device(device)
    models = {name: load_backbone(name, random_weights=random_weights).to(where) for name in dict.fromkeys(backbones)}
    starts = range(0, len(files) - batch_size + 1, batch_size)
    batches = track(starts, "comparing layers", console=Console(stderr=True), transient=True)
    found = compare_layers(
        models,
        ([read_batch(files[start : start + batch_size], size)] * len(models) for start in batches),
        normed=normed,
    )
    page = write_cka(found, out, images=str(images), normed=normed)
    for name in found.layers:
        print(describe_split(found, name))
    print(f"page: {page}")
    return 0


def choose_files(folder: Path, limit: int) -> list[Path]:
    """Images of a folder, evenly drawn, in an order in which neighbours (frames of a film) are far apart.

    Raises:
        DataError: There is no image.
    """
    import random

    from vitsplit.data.folders import index_files, require_folder
    from vitsplit.data.images import IMAGE_SUFFIXES

    files = list(index_files(require_folder(folder), IMAGE_SUFFIXES).values())
    if limit and len(files) > limit:
        files = [files[index * len(files) // limit] for index in range(limit)]
    random.Random(0).shuffle(files)
    return files


def read_batch(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Images of any sizes as one batch, uint8.

    Raises:
        DataError: One cannot be read.
    """
    import torch
    from torchvision.transforms.v2 import functional as TF

    from vitsplit.data.images import read_image

    return torch.stack([TF.resize(read_image(file), list(size), antialias=True) for file in files])


VERBS: dict[str, Callable[..., int]] = {"cka": cka}
"""Name to function, whose signature and docstring make the command line."""


def main(argv: list[str]) -> int:
    """Runs ``vitsplit analyze VERB`` and returns the exit status."""
    return int(
        tyro.extras.subcommand_cli_from_dict(
            VERBS,
            prog="vitsplit analyze",
            description="Look into frozen models.",
            args=argv,
        )
    )
