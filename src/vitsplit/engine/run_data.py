"""Training images of a run: which they are, a sample with what every head learns from it, and a batch.

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
        names: The images' files.
        parts: Of every head its task's own batch, by its name. Their images are ``image_BCHW`` itself.
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
    """Makes a batch of every head's samples of the same crops, with its task's own ``collate``."""
    parts = {name: collates[name](samples[name]) for name in samples}
    any_part = next(iter(parts.values()))
    image_BCHW: Tensor = any_part.image_BCHW
    shared = {name: dataclasses.replace(part, image_BCHW=image_BCHW) for name, part in parts.items()}
    return Batch(image_BCHW, any_part.names, shared, any_part.extent_B2)


class RunData(Protocol):
    """Training samples. ``data[index, seed]`` is image ``index``, augmented with the random stream ``seed``.

    A sample holds every head's own sample, by the head's name.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]: ...

    def lengths(self) -> Sequence[int] | None:
        """See ``tasks.base.LengthGroups``."""
        ...


@dataclass(frozen=True)
class OwnAugmentation:
    """The samples of the only head, as its task augments them.

    Attributes:
        head: The head's name.
        data: Its task's samples.
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
        geometry: The augmentation.
        labels: Every head's labels.
        matches: For every image, its index in each head's labels.
        image_paths: The images.
    """

    geometry: GeometryConfig
    labels: Mapping[str, CropData]
    matches: Sequence[Mapping[str, int]]
    image_paths: Sequence[Path]

    @classmethod
    def match(cls, geometry: GeometryConfig, labels: Mapping[str, CropData]) -> SharedCrops:
        """The images that all heads have labels for, which must be all of them; see ``match_images``."""
        paths = {name: each.paths() for name, each in labels.items()}
        matches = match_images(paths)
        owner = next(iter(labels))
        return cls(geometry, labels, matches, [paths[owner][match[owner]] for match in matches])

    def __len__(self) -> int:
        return len(self.matches)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        # torchvision takes seconds to import, and whoever only reads data needs none of it.
        from vitsplit.engine.shared_crop import random_crop

        index, seed = key
        image_CHW = read_image(self.image_paths[index])
        crop, crop_CHW = random_crop(image_CHW, self.geometry, torch.Generator().manual_seed(seed))
        return {
            name: self.labels[name].cropped(place, image_CHW, crop_CHW, crop)
            for name, place in self.matches[index].items()
        }

    def lengths(self) -> None:
        """See ``RunData``: images are of one kind."""


def match_images(paths: Mapping[str, Sequence[Path]]) -> list[dict[str, int]]:
    """Matches the heads' images by their paths below the folder that holds all of a head's, without suffix.

    Args:
        paths: The training images of every head, by its name.

    Returns:
        For every image its index in each head's list, in the order of the names.

    Raises:
        DataError: A head lacks images that another has (counted, the first five named), or two images of one head
            differ in nothing but the suffix.
    """
    places = {name: _by_name(head_paths) for name, head_paths in paths.items()}
    everything = set().union(*places.values())
    said = [
        f"{name} has none for {len(missing)} of {len(everything)} images ({preview(missing)})"
        for name, place in places.items()
        if (missing := sorted(everything - place.keys()))
    ]
    if said:
        raise DataError(
            f"Heads are trained together on images that all of them have labels for, but {'; '.join(said)}. Give all "
            "heads the same training images under the same names."
        )
    return [{name: place[key] for name, place in places.items()} for key in sorted(everything)]


def _by_name(paths: Sequence[Path]) -> dict[str, int]:
    folder = os.path.commonpath([path.parent for path in paths])
    places: dict[str, int] = {}
    for index, path in enumerate(paths):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in places:
            raise DataError(f"{path} and {paths[places[name]]} differ in nothing but the suffix. Keep one of them.")
        places[name] = index
    return places
