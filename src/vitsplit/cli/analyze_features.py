"""``vitsplit analyze features``: feature maps of all layers of frozen and trained models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vitsplit.cli.values import ImageSize, Limit, Switch, make_writable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vitsplit.analysis.features import ModelMaps

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]
Runs = Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]


def features(
    images: tyro.conf.Positional[Path],
    /,
    backbones: Names = (),
    runs: Runs = (),
    show: Literal["channel", "pca"] = "channel",
    out: Path = Path("analysis/features"),
    size: ImageSize = (252, 336),
    limit: Limit = 4,
    normed: Switch = False,
    random_weights: Switch = False,
    weights: Path | None = None,
    device: str | None = None,
) -> int:
    """Show the feature maps of all layers of frozen and trained models, side by side (Figures 4 and 13).

    Each model is a row. For runs, the trained blocks are shown in place of the layers that they were copied from,
    followed by the maps of the prior head and of the fusion. Writes a page, one picture per image, and JSON.

    Args:
        images: An image, or a folder of images, including subfolders.
        backbones: Frozen models; by default those of the runs, or dinov2-small without runs.
        runs: Run or bundle folders of --method vitsplit, linear-probe, frozen-head, full-finetune or upernet.
        show: The first channel, as in the paper, or three principal components as colors.
        out: Folder to write to.
        size: Height and width that images are resized to.
        limit: Maximum number of images, evenly spaced; 0: all. They are in memory together.
        normed: Apply the model's final norm to each layer, as for the heads.
        random_weights: Use random weights for the backbones, for tests only.
        weights: Weights of the runs' backbone, if they were trained with --weights.
        device: The device; None: the first GPU, else the CPU.
    """
    from vitsplit.analysis.features import backbone_maps
    from vitsplit.analysis.features_report import write_features
    from vitsplit.analysis.images import choose_files, read_batch
    from vitsplit.backbone import load_backbone
    from vitsplit.inference.loading import choose_device

    where = choose_device(device)
    files = [images] if images.is_file() else sorted(choose_files(images, limit))
    image_BCHW = read_batch(files, size)
    make_writable(out)
    trained = _trained(runs, image_BCHW, where, normed=normed, with_own=not backbones, weights=weights)
    names = backbones or (() if runs else ("dinov2-small",))
    frozen = [
        backbone_maps(name, load_backbone(name, random_weights=random_weights).to(where), image_BCHW, normed=normed)
        for name in dict.fromkeys(names)
    ]
    pixels = image_BCHW.permute(0, 2, 3, 1).numpy()
    named = [(file.name, pixels[index]) for index, file in enumerate(files)]
    page = write_features([*frozen, *trained], named, out, show=show, normed=normed)
    print(f"{len(files)} images, {len(frozen) + len(trained)} models\npage: {page}")
    return 0


def _trained(
    runs: tuple[Path, ...],
    image_BCHW: Tensor,
    device: torch.device,
    *,
    normed: bool,
    with_own: bool,
    weights: Path | None,
) -> list[ModelMaps]:
    """Maps of all bundles of the runs; with ``with_own``, preceded by those of their frozen backbones."""
    from vitsplit.analysis.features import backbone_maps, trained_maps
    from vitsplit.bundle import find_bundles
    from vitsplit.inference.predictor import load_head

    own: dict[str, ModelMaps] = {}
    found: list[ModelMaps] = []
    for run in runs:
        for folder in find_bundles(run):
            loaded = load_head(folder, weights=weights, device=device, precision="fp32")
            title = loaded.card.backbone_title
            if with_own and loaded.backbone.info.weights_hash not in own:
                own[loaded.backbone.info.weights_hash] = backbone_maps(
                    title, loaded.backbone, image_BCHW, normed=normed
                )
            name = f"{loaded.card.task}, {loaded.card.config.method.name}: {run}"
            found.append(trained_maps(name, loaded.backbone, loaded.model, image_BCHW, normed=normed))
    return [*own.values(), *found]
