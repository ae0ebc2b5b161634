"""``vitsplit import CHECKPOINT``: a checkpoint of the authors' release as a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def import_checkpoint(
    checkpoint: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="CHECKPOINT")]],
    /,
    *,
    out: Path,
    config: Path | None = None,
    prior_layers: tuple[int, ...] = (),
    classes: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    language_model: str | None = None,
    language_weights: str | None = None,
) -> int:
    """Convert a checkpoint of the authors' release to a bundle.

    Task, sizes and classes are read from the file, without executing code in it. The bundle predicts as the release
    does: positions and patches are resampled, and maps stretched over the image, in the release's way. The frozen
    model is not taken from the file, only compared with the backbone.

    Examples:
        vitsplit import iter_40000.pth --out bundles/ade20k --config 20241028_101500.log
        vitsplit import best_abs_rel.pth --out bundles/depth
        vitsplit import checkpoints/llava-v1.5-7b-vitsplit --out bundles/llava

    Args:
        checkpoint: A .pth file of mmseg (segmentation), of the depth toolbox or of mmdet (detection); of LLaVA,
            mm_projector.bin or the folder of the second stage.
        out: The folder of the bundle to create.
        config: The configuration of the training, if the file records none, as those for segmentation: the .py that
            mmcv writes into the work folder, or the .log of the training. Not executed.
        prior_layers: Indices of the prior layers (0-based), if neither records out_indices.
        classes: A classes.json with the names of the classes, if the file does not record them.
        backbone: The frozen model; None: the DINOv2 of the file's size, or LLaVA's CLIP.
        weights: Weights of the backbone, if they cannot be downloaded.
        language_model: Of LLaVA, the language model that training started from; None: the Vicuna of the file's width.
        language_weights: Folder of the language model, if it cannot be downloaded.
    """
    from vitsplit.importing.convert import import_checkpoint as convert

    convert(
        checkpoint,
        out=out,
        config=config,
        prior_layers=prior_layers or None,
        classes=classes,
        backbone=backbone,
        weights=weights,
        language_model=language_model,
        language_weights=language_weights,
    )
    print(f"imported to {out}; `vitsplit predict {out} IMAGE --out FOLDER` runs it")
    return 0
