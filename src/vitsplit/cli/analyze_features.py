"""``vitsplit analyze features``: the map of every layer, of frozen models and of trained ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vitsplit.cli.values import ImageSize, Limit, Switch, writable

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
    """Show the map of every layer of frozen and of trained models, side by side (Figures 4 and 13).

    A model is a row. Of a run, the blocks that it trained stand in the place of the layers that they are copies of,
    and the prior head's and the fused map follow. Writes a page, a picture for every image, and JSON.

    Args:
        images: An image, or a folder of images; folders inside it count too.
        backbones: Frozen models; those of the runs, or dinov2-small where there is neither.
        runs: Run or bundle folders of --method vitsplit, linear-probe, frozen-head, full-finetune or upernet.
        show: The first channel, as the paper does, or three principal components as colours.
        out: Folder to write to.
        size: Height and width that images are resized to.
        limit: The most images to use, drawn evenly; 0: all. They are held in memory together.
        normed: Take layers after the model's final norm, as the heads read them.
        random_weights: Use random weights for the backbones: for tests of the machinery.
        weights: Weights of the runs' backbone, where they were trained with --weights.
        device: Where to compute; the first GPU, else the processor.
    """
    from vitsplit.analysis.features import backbone_maps
    from vitsplit.analysis.features_report import write_features
    from vitsplit.analysis.images import choose_files, read_batch
    from vitsplit.backbone import load_backbone
    from vitsplit.inference.loading import choose_device

    where = choose_device(device)
    files = [images] if images.is_file() else sorted(choose_files(images, limit))
    image_BCHW = read_batch(files, size)
    writable(out)
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
    """The maps of every bundle of the runs, after those of the frozen models that they were trained on if asked for."""
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
