"""The user's images, as batches to look into models with.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitsplit.analysis.cka import LEAST_BATCH
from vitsplit.data.folders import index_files, require_folder
from vitsplit.data.images import IMAGE_SUFFIXES, read_image
from vitsplit.errors import ConfigError


def choose_files(folder: Path, limit: int) -> list[Path]:
    """Images of a folder, evenly drawn, in an order in which neighbors (frames of a film) are far apart.

    Args:
        folder: The folder; folders inside it count too.
        limit: The most images; 0: all.

    Raises:
        DataError: There is no image.
    """
    files = list(index_files(require_folder(folder), IMAGE_SUFFIXES).values())
    if limit and len(files) > limit:
        files = [files[index * len(files) // limit] for index in range(limit)]
    random.Random(0).shuffle(files)
    return files


def batches_to_compare(folder: Path, limit: int, batch_size: int) -> list[list[Path]]:
    """``choose_files`` for a comparison of layers: batches of so many images, and what is left as one more.

    What is left joins the last batch where it is too little to compare by itself, so no image is left out.

    Raises:
        ConfigError: The batch is too small, or there are fewer images than that.
        DataError: There is no image.
    """
    if batch_size < LEAST_BATCH:
        raise ConfigError(f"--batch-size {batch_size}: layers are compared on at least {LEAST_BATCH} images at a time.")
    files = choose_files(folder, limit)
    if len(files) < batch_size:
        raise ConfigError(f"{folder}: {len(files)} images are fewer than --batch-size {batch_size}. Give more images.")
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    if len(batches[-1]) < LEAST_BATCH:
        rest = batches.pop()
        batches[-1] = [*batches[-1], *rest]
    return batches


def read_batch(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Images of any sizes as one batch, uint8, ``(B, 3, H, W)`` of ``size``.

    Raises:
        DataError: One cannot be read.
    """
    # torchvision takes seconds to import.
    from torchvision.transforms.v2 import functional as TF

    return torch.stack([TF.resize(read_image(file), list(size), antialias=True) for file in files])
