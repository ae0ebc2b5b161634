"""Training data of a run: images, samples with the labels of every head, and batches.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vitsplit.data.content_size import move_extents, pin_extents
from vitsplit.data.folders import preview
from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.tasks.base import CropData, LengthGroups, TrainData
from vitsplit.train_config import GeometryConfig


@dataclass(frozen=True)
class Batch:
    """Samples of one size with the labels of every head.

    Attributes:
        image_BCHW: uint8.
        names: File names of the images.
        parts: The batch of every head's task, by head name. Their images are ``image_BCHW`` itself.
        extent_B2: See ``tasks.base.Batch``.
    """

    image_BCHW: Tensor
    names: list[str]
    parts: Mapping[str, Any]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> Batch:
        """The batch on a device, with one copy of the images."""
        extent_B2 = move_extents(self.extent_B2, device)
        return self._change(self.image_BCHW.to(device, non_blocking=True), extent_B2, lambda part: part.to(device))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by the data loader."""
        extent_B2 = pin_extents(self.extent_B2)
        return self._change(self.image_BCHW.pin_memory(), extent_B2, lambda part: part.pin_memory())

    def _change(self, image_BCHW: Tensor, extent_B2: Tensor | None, change: Callable[[Any], Any]) -> Batch:
        parts = {name: change(dataclasses.replace(part, image_BCHW=image_BCHW)) for name, part in self.parts.items()}
        return Batch(image_BCHW, self.names, parts, extent_B2)


def collate(samples: Mapping[str, Sequence[Any]], collates: Mapping[str, Callable[[Sequence[Any]], Any]]) -> Batch:
    """Collates the samples of every head, which are of the same crops, with its task's ``collate``."""
    parts = {name: collates[name](samples[name]) for name in samples}
    any_part = next(iter(parts.values()))
    image_BCHW: Tensor = any_part.image_BCHW
    shared = {name: dataclasses.replace(part, image_BCHW=image_BCHW) for name, part in parts.items()}
    return Batch(image_BCHW, any_part.names, shared, any_part.extent_B2)


class RunData(Protocol):
    """Training samples. ``data[index, seed]`` is image ``index``, augmented with the random seed ``seed``.

    A sample is a dictionary of the samples of all heads, by head name.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]: ...

    def lengths(self) -> Sequence[int] | None:
        """See ``tasks.base.LengthGroups``."""
        ...


@dataclass(frozen=True)
class OwnAugmentation:
    """The samples of a single head, with its task's augmentation.

    Attributes:
        head: The head's name.
        data: The task's samples.
    """

    head: str
    data: TrainData

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {self.head: self.data[key]}

    def lengths(self) -> Sequence[int] | None:
        """See ``RunData``."""
        return self.data.lengths() if isinstance(self.data, LengthGroups) else None


@dataclass(frozen=True)
class SharedCrops:
    """Samples of all heads from the same crop of an image.

    Attributes:
        geometry: Settings of the augmentation.
        labels: The labels of every head.
        matches: For every image, its index in each head's labels.
        image_paths: The image files.
    """

    geometry: GeometryConfig
    labels: Mapping[str, CropData]
    matches: Sequence[Mapping[str, int]]
    image_paths: Sequence[Path]

    @classmethod
    def match(cls, geometry: GeometryConfig, labels: Mapping[str, CropData]) -> SharedCrops:
        """Matches the heads' images, which must be the same for all heads; see ``match_images``."""
        paths = {name: each.paths() for name, each in labels.items()}
        matches = match_images(paths)
        owner = next(iter(labels))
        return cls(geometry, labels, matches, [paths[owner][match[owner]] for match in matches])

    def __len__(self) -> int:
        return len(self.matches)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        # Imports torchvision, which takes seconds and is not needed to read data.
        from vitsplit.engine.shared_crop import random_crop

        index, seed = key
        image_CHW = read_image(self.image_paths[index])
        crop, crop_CHW = random_crop(image_CHW, self.geometry, torch.Generator().manual_seed(seed))
        return {
            name: self.labels[name].cropped(place, image_CHW, crop_CHW, crop)
            for name, place in self.matches[index].items()
        }

    def lengths(self) -> None:
        """See ``RunData``: samples are not grouped by length."""


def match_images(paths: Mapping[str, Sequence[Path]]) -> list[dict[str, int]]:
    """Matches the heads' images by their paths without suffix, relative to the common folder of a head's images.

    Args:
        paths: The training images of every head, by head name.

    Returns:
        For every image its index in each head's list, sorted by path.

    Raises:
        DataError: A head lacks images that another has (counted, the first five named), or two images of one head
            differ only in their suffix.
    """
    indices = {name: _index_by_name(head_paths) for name, head_paths in paths.items()}
    all_images = set().union(*indices.values())
    problems = [
        f"{name} has no labels for {len(missing)} of {len(all_images)} images ({preview(missing)})"
        for name, by_name in indices.items()
        if (missing := sorted(all_images - by_name.keys()))
    ]
    if problems:
        raise DataError(
            f"All heads of a run need labels for the same images, but {'; '.join(problems)}. Give all heads the same "
            "training images under the same names."
        )
    return [{name: by_name[key] for name, by_name in indices.items()} for key in sorted(all_images)]


def _index_by_name(paths: Sequence[Path]) -> dict[str, int]:
    folder = os.path.commonpath([path.parent for path in paths])
    indices: dict[str, int] = {}
    for index, path in enumerate(paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in indices:
            raise DataError(f"{path} and {paths[indices[name]]} differ only in their suffix. Keep one of them.")
        indices[name] = index
    return indices
