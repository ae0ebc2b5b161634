"""Batches of a user's images for the analysis of models.

Shapes: B batch, H W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitsplit.analysis.cka import LEAST_BATCH
from vitsplit.data.decoding import IMAGE_SUFFIXES
from vitsplit.data.folders import index_files, require_folder
from vitsplit.data.images import read_image
from vitsplit.errors import ConfigError


def choose_files(folder: Path, limit: int) -> list[Path]:
    """Images of a folder, spread evenly and shuffled, so that neighbors (frames of a video) are far apart.

    Args:
        folder: The folder, searched recursively.
        limit: Maximum number of images; 0: all.

    Raises:
        DataError: There are no images.
    """
    files = list(index_files(require_folder(folder), IMAGE_SUFFIXES).values())
    if limit and len(files) > limit:
        files = [files[index * len(files) // limit] for index in range(limit)]
    random.Random(0).shuffle(files)
    return files


def batches_to_compare(folder: Path, limit: int, batch_size: int) -> list[list[Path]]:
    """``choose_files`` in batches for the comparison of layers.

    The last batch may be smaller; if it is too small for a comparison, it is merged with the previous one.

    Raises:
        ConfigError: The batch size is too small, or larger than the number of images.
        DataError: There are no images.
    """
    if batch_size < LEAST_BATCH:
        raise ConfigError(
            f"--batch-size {batch_size}: comparing layers requires batches of at least {LEAST_BATCH} images."
        )
    files = choose_files(folder, limit)
    if len(files) < batch_size:
        raise ConfigError(f"{folder}: {len(files)} images are fewer than --batch-size {batch_size}. Use more images.")
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    if len(batches[-1]) < LEAST_BATCH:
        rest = batches.pop()
        batches[-1] = [*batches[-1], *rest]
    return batches


def read_batch(files: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Images of any sizes as one batch, uint8, ``(B, 3, H, W)`` of ``size``.

    Raises:
        DataError: An image cannot be read.
    """
    # torchvision takes seconds to import.
    from torchvision.transforms.v2 import functional as TF

    return torch.stack([TF.resize(read_image(file), list(size), antialias=True) for file in files])
