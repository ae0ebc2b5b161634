"""Augmentation of detection data: DETR's multi-scale as in the authors' release, large-scale jitter, or none.

Shapes: N objects, C channels, H W pixels. Boxes are (x1, y1, x2, y2), see ``data.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torchvision.ops import masks_to_boxes

from vitsplit.data.crops import Crop, SharedCrop, fit_size, pad_to, uniform
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import (
    DetectionSample,
    DetectionSet,
    require_annotated_size,
)

RELEASE_LARGEST_SIDE = 800
"""The largest of ``train_sides`` for which DETR's intermediate sizes are meant; they scale with it."""
FIRST_SIDES = (400, 500, 600)
FIRST_CROP = (384, 600)
"""Smallest and largest side of the crop that DETR takes before it resizes a second time."""
MIN_SIDE = 1.0
"""Objects whose box is less wide or high than this (in pixels) afterwards are dropped."""


@dataclass(frozen=True)
class TrainDetection:
    """Training samples: ``data[index, seed]`` is the sample ``index``, augmented with the random stream ``seed``.

    A pure function of both, so neither the number of reading processes nor a resumed run changes what is seen.
    """

    data: DetectionSet
    config: DetectionConfig

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> DetectionSample:
        index, seed = key
        return augment(self.data.load(index), self.config, torch.Generator().manual_seed(seed))

    def paths(self) -> list[Path]:
        """See ``CropData``."""
        return [item.path for item in self.data.items]

    def cropped(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: SharedCrop) -> DetectionSample:
        """See ``CropData``; objects are cut as detection's own augmentation cuts them."""
        require_annotated_size(image_CHW.shape[-2:], self.data.items[index], self.data.source)
        # One channel is enough to say where the image lies: its pixels are those of the crop.
        sample = cut(self.data.label(index, image_CHW[:1]), crop.part)
        return dataclasses.replace(pad(sample, crop.size), image_CHW=crop_CHW, extent=crop.extent)


def augment(sample: DetectionSample, config: DetectionConfig, generator: Generator) -> DetectionSample:
    """Makes one training sample.

    ``config.jitter`` decides on the size, then the image is flipped with probability ``config.flip``:

    - ``detr``: ``random_detr_crop``. The size varies; ``collate`` pads.
    - ``large-scale``: resized to fit ``crop_size``, times a factor in ``scale_range``; a random crop of ``crop_size``
      where that is larger, zeros below and at the right where it is smaller.
    - ``none``: as ``fit``.

    Objects are cut with the image. One that is left with less than ``MIN_SIDE`` of width or height, or with no pixel of
    its mask, is dropped. Crowds keep their flag.

    Args:
        sample: An image and its objects.
        config: Sizes and probabilities.
        generator: Source of every random number.
    """
    size = (sample.image_CHW.shape[-2], sample.image_CHW.shape[-1])
    whole = Crop.whole(size)
    if config.jitter == "detr":
        crop = random_detr_crop(whole, config, generator)
    elif config.jitter == "large-scale":
        crop = random_large_scale_crop(whole, config, generator)
    else:
        crop = whole.resize(fit_size(size, config.image_scale))
    sample = cut(sample, crop._replace(flipped=uniform(generator) < config.flip))
    if config.pad_color == "mean":
        sample = dataclasses.replace(sample, extent=(crop.height, crop.width))
    return pad(sample, config.crop_size) if config.jitter == "large-scale" else sample


def fit(image_CHW: Tensor, config: DetectionConfig) -> tuple[Tensor, tuple[float, float]]:
    """Resizes an image as it is tested: the largest size of its shape that fits in ``config.image_scale``.

    Returns:
        The image (uint8), and the factors in y and x by which it grew: a box on it, divided by them, is one on the
        original.
    """
    height, width = image_CHW.shape[-2:]
    size = fit_size((height, width), config.image_scale)
    return Crop.whole((height, width)).resize(size).image(image_CHW), (size[0] / height, size[1] / width)


def random_detr_crop(crop: Crop, config: DetectionConfig, generator: Generator) -> Crop:
    """DETR's multi-scale as the release trains with it: draws a part of the image and its size.

    The image is resized to a shortest side out of ``train_sides``, the longest at most that of ``image_scale``. With
    probability one half that is done to a part of it, which DETR finds by resizing to a shortest side of 400, 500 or
    600, the longest at most as before, and cropping to sides of 384 to 600. These numbers are for ``train_sides`` up to
    800; for others they are multiplied by ``max(train_sides) / 800``, so that small configurations see the same shares
    of their images. At last the image is cropped to at most ``crop_size``.
    """
    longest = max(config.image_scale)
    if _integer(generator, 0, 1):
        factor = max(config.train_sides) / RELEASE_LARGEST_SIDE
        side, low, high = (round(number * factor) for number in (_choice(generator, FIRST_SIDES), *FIRST_CROP))
        crop = crop.resize(fit_size((crop.height, crop.width), (longest, side)))
        height = _integer(generator, min(crop.height, low), min(crop.height, high))
        width = _integer(generator, min(crop.width, low), min(crop.width, high))
        crop = _random_part(crop, height, width, generator)
    side = _choice(generator, config.train_sides)
    crop = crop.resize(fit_size((crop.height, crop.width), (longest, side)))
    return _random_part(crop, *config.crop_size, generator)


def random_large_scale_crop(crop: Crop, config: DetectionConfig, generator: Generator) -> Crop:
    """Large-scale jitter (Ghiasi et al. 2021): draws a size, and a part of at most ``crop_size`` of it."""
    low, high = config.scale_range
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    factor *= min(config.crop_size[0] / crop.height, config.crop_size[1] / crop.width)
    crop = crop.resize((max(1, round(crop.height * factor)), max(1, round(crop.width * factor))))
    return _random_part(crop, *config.crop_size, generator)


def cut(sample: DetectionSample, crop: Crop) -> DetectionSample:
    """Cuts a crop out of an image and its objects.

    A box that the edge cuts is tightened to what is left of its mask, as mmdet does (torchvision only clips it); a box
    that is not cut stays as it was annotated, which is finer than whole pixels.
    """
    rows, columns = crop.pixels(sample.image_CHW.shape[-2:])
    corner_4 = torch.tensor([columns.start, rows.start] * 2)
    extent_4 = torch.tensor([columns.stop, rows.stop] * 2) - corner_4
    boxes_N4 = sample.boxes_N4 - corner_4
    inside_N4 = torch.minimum(boxes_N4.clamp_min(0), extent_4)
    if sample.masks_NHW is not None:
        is_cut_N = (inside_N4 != boxes_N4).any(1)
        seen_N4 = mask_extents(sample.masks_NHW[is_cut_N][:, rows, columns])
        inside_N4[is_cut_N] = _intersect(inside_N4[is_cut_N], seen_N4)
    boxes_N4 = inside_N4 * (torch.tensor([crop.width, crop.height] * 2) / extent_4)
    keep_N = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) >= MIN_SIDE).all(1)
    masks_NHW = None
    if sample.masks_NHW is not None:
        masks_NHW = crop.labels(sample.masks_NHW[keep_N])
        seen_N = masks_NHW.flatten(1).any(1).bool()
        keep_N[keep_N.clone()] = seen_N
        masks_NHW = masks_NHW[seen_N]
    if crop.flipped:
        x1_N, y1_N, x2_N, y2_N = boxes_N4.unbind(1)
        boxes_N4 = torch.stack([crop.width - x2_N, y1_N, crop.width - x1_N, y2_N], 1)
    return dataclasses.replace(
        sample,
        image_CHW=crop.image(sample.image_CHW),
        boxes_N4=boxes_N4[keep_N],
        labels_N=sample.labels_N[keep_N],
        masks_NHW=masks_NHW,
        crowd_N=sample.crowd_N[keep_N],
    )


def pad(sample: DetectionSample, size: tuple[int, int]) -> DetectionSample:
    """Adds zeros below and at the right up to a height and width."""
    masks_NHW = None if sample.masks_NHW is None else pad_to(sample.masks_NHW, size)
    return dataclasses.replace(sample, image_CHW=pad_to(sample.image_CHW, size), masks_NHW=masks_NHW)


def mask_extents(masks_NHW: Tensor) -> Tensor:
    """The boxes around the pixels of masks, float32; one without pixels has no width."""
    boxes_N4 = torch.zeros(len(masks_NHW), 4)
    seen_N = masks_NHW.flatten(1).any(1).bool()
    # torchvision's boxes end at the last pixel, ours after it.
    boxes_N4[seen_N] = masks_to_boxes(masks_NHW[seen_N]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return boxes_N4


def _intersect(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])], 1)


def _random_part(crop: Crop, height: int, width: int, generator: Generator) -> Crop:
    """A part of a size, or of the crop's own where that is smaller."""
    height, width = min(height, crop.height), min(width, crop.width)
    top = _integer(generator, 0, crop.height - height)
    left = _integer(generator, 0, crop.width - width)
    return crop.crop(top, left, height, width)


def _integer(generator: Generator, low: int, high: int) -> int:
    """Of ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _choice(generator: Generator, numbers: Sequence[int]) -> int:
    return numbers[_integer(generator, 0, len(numbers) - 1)]
