"""The similarity of layers on training images.

Shapes: B batch, L layers, H W pixels.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitsplit.analysis.cka import LEAST_BATCH, Similarity, compare_layers
from vitsplit.atomic_files import write_json
from vitsplit.backbone import open_backbone
from vitsplit.config import to_dict
from vitsplit.engine.assemble import open_tasks
from vitsplit.engine.processes import process_state
from vitsplit.engine.run_data import OwnAugmentation
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError, DataError, RunError
from vitsplit.files import read_json, real_number, whole_number
from vitsplit.methods.split.config import SplitConfig, split_settings
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

MOST_IMAGES = 64
"""Maximum number of training images for choosing layers."""
BATCH_SIZE = 8
_AGAIN = "Delete it to compute it again."

Folders = Mapping[str, str | Path]
"""Name of each head to its data set."""


def training_similarity(config: TrainConfig, data: Folders, *, most_images: int = MOST_IMAGES) -> Similarity:
    """The CKA of the layers of a backbone, as read by the heads, on augmented training images.

    Raises:
        DataError: There are fewer than four training images.
    """
    tasks = RunTasks(config, open_tasks(config, data))
    backbone = open_backbone(config.backbone).to(process_state().device)
    batches = list(training_images(tasks, most_images))
    if not batches:
        raise DataError(
            f"{', '.join(map(str, data.values()))}: comparing layers requires at least {LEAST_BATCH} training images. "
            "Add images, or use the layers of the recipe (--layers recipe)."
        )
    return compare_layers({"backbone": backbone}, ([batch] for batch in batches), normed=_reads_normed(config))


def training_images(tasks: RunTasks, most_images: int) -> Iterator[Tensor]:
    """Batches ``image_BCHW`` of at least four training images, spread evenly, each image once.

    Crops smaller than their batch are padded with black, independently of ``pad_color``.
    """
    data = tasks.train_data()
    own: Any = data.data if isinstance(data, OwnAugmentation) else data
    indices: list[int] = own.one_per_image() if hasattr(own, "one_per_image") else list(range(len(data)))
    if len(indices) > most_images:
        indices = [indices[place * len(indices) // most_images] for place in range(most_images)]
    # Neighbors, which may be frames of one video, go to different batches.
    random.Random(0).shuffle(indices)
    for begin in range(0, len(indices), BATCH_SIZE):
        chunk = indices[begin : begin + BATCH_SIZE]
        if len(chunk) >= LEAST_BATCH:
            yield tasks.collate([data[index, index] for index in chunk]).image_BCHW


def cached_similarity(config: TrainConfig, data: Path, file: Path) -> Similarity:
    """``training_similarity``, cached in a file, so that a study called again chooses the same layers.

    Raises:
        RunError: The file cannot be read or written.
    """
    about = {
        "backbone": to_dict(config.backbone),
        "data": str(data.resolve()),
        "crop_size": list(config.task.crop_size),
        "normed": _split(config).tap_norm,
    }
    if file.exists():
        saved = read_json(file, error=RunError, advice=_AGAIN)
        if isinstance(saved, dict) and saved.get("about") == about:
            cka_LL = _similarities(saved.get("cka"), file)
            images = whole_number(saved.get("images"), f"{file}: images", 1, 1 << 40, error=RunError, advice=_AGAIN)
            return Similarity({"backbone": len(cka_LL)}, cka_LL, images)
    logger.info("comparing the layers of %s on training images", config.backbone.backbone)
    found = training_similarity(config, dict.fromkeys(config.heads, data))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"about": about, "images": found.images, "cka": found.cka_MM.tolist()})
    return found


def _similarities(value: Any, file: Path) -> NDArray[np.float64]:
    """A square matrix of CKA values from a file, ``cka_LL``."""
    rows = value if isinstance(value, list) else []
    if not rows or any(not isinstance(row, list) or len(row) != len(rows) for row in rows):
        raise RunError(f"{file}: cka must be a square matrix of numbers. {_AGAIN}")
    # CKA is in 0..1, up to rounding.
    numbers = [
        [real_number(each, f"{file}: cka", -0.01, 1.01, error=RunError, advice=_AGAIN) for each in row] for row in rows
    ]
    return np.array(numbers)


def _reads_normed(config: TrainConfig) -> bool:
    return all(_split(head).tap_norm for head in config.heads.values())


def check_choice(config: TrainConfig, context: str) -> None:
    """Checks that the method has layers to choose; ``context`` is the feature, for the error message.

    Raises:
        ConfigError: It has none; names the method or the connector.
    """
    split_settings(config.method, context)
    if config.task.own_head is not None:
        raise ConfigError(f"{context}: {config.task.own_head} replaces ViT-Split, and has no layers to choose.")


def _split(config: Any) -> SplitConfig:
    return split_settings(config.method, "the choice of layers")
