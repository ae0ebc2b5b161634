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

from vitsplit.data.crops import Crop, SharedCrop, pad_to, uniform
from vitsplit.data.resizing import fit_size
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import (
    DetectionSample,
    DetectionSet,
    require_annotated_size,
)

RELEASE_LARGEST_SIDE = 800
"""Maximum of ``train_sides`` for which DETR's intermediate sizes are defined; they scale with it."""
FIRST_SIDES = (400, 500, 600)
FIRST_CROP = (384, 600)
"""Minimum and maximum side of DETR's crop before the second resizing."""
MIN_SIDE = 1.0
"""Objects with a smaller width or height (in pixels) after augmentation are dropped."""


@dataclass(frozen=True)
class TrainDetection:
    """Training samples: ``data[index, seed]`` is the sample ``index``, augmented with the random seed ``seed``.

    A pure function of both, so samples do not depend on the number of workers or on resuming.
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
        """See ``CropData``; objects are cropped as in the task's own augmentation."""
        require_annotated_size(image_CHW.shape[-2:], self.data.items[index], self.data.source)
        # One channel suffices for the geometry; the pixels are replaced by the crop.
        sample = cut(self.data.label(index, image_CHW[:1]), crop.part)
        return dataclasses.replace(pad(sample, crop.size), image_CHW=crop_CHW, extent=crop.extent)


def augment(sample: DetectionSample, config: DetectionConfig, generator: Generator) -> DetectionSample:
    """Makes one training sample.

    ``config.jitter`` determines the size; then the image is flipped with probability ``config.flip``:

    - ``detr``: ``random_detr_crop``. The size varies; ``collate`` pads.
    - ``large-scale``: resized to fit ``crop_size``, times a factor in ``scale_range``; then randomly cropped to
      ``crop_size``, or padded with zeros below and to the right.
    - ``none``: as ``fit``.

    Objects are cropped with the image. Objects left with a width or height below ``MIN_SIDE``, or without mask pixels,
    are dropped. Crowds keep their flag.

    Args:
        sample: An image and its objects.
        config: Sizes and probabilities.
        generator: Random number generator.
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
    """Resizes an image as at test time: to fit in ``config.image_scale``, keeping the aspect ratio.

    Returns:
        The image (uint8), and the scale factors in y and x.
    """
    height, width = image_CHW.shape[-2:]
    size = fit_size((height, width), config.image_scale)
    return Crop.whole((height, width)).resize(size).image(image_CHW), (size[0] / height, size[1] / width)


def random_detr_crop(crop: Crop, config: DetectionConfig, generator: Generator) -> Crop:
    """DETR's multi-scale augmentation as in the release: samples a part of the image and its size.

    The image is resized to a shortest side out of ``train_sides``, with the longest side at most that of
    ``image_scale``. With probability 0.5, it is first resized to a shortest side of 400, 500 or 600, with the same
    maximum, and cropped to sides of 384 to 600. These numbers apply to ``train_sides`` up to 800; otherwise they are
    multiplied by ``max(train_sides) / 800``, so that small configurations see the same fractions of their images.
    Finally the image is cropped to at most ``crop_size``.
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
    """Large-scale jitter (Ghiasi et al. 2021): samples a size, and a crop of at most ``crop_size``."""
    low, high = config.scale_range
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    factor *= min(config.crop_size[0] / crop.height, config.crop_size[1] / crop.width)
    crop = crop.resize((max(1, round(crop.height * factor)), max(1, round(crop.width * factor))))
    return _random_part(crop, *config.crop_size, generator)


def cut(sample: DetectionSample, crop: Crop) -> DetectionSample:
    """Crops an image and its objects.

    A box clipped by the edge is tightened to the rest of its mask, as in mmdet (torchvision only clips it); other boxes
    stay as annotated, with subpixel precision.
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
    """Pads with zeros below and to the right to a height and width."""
    masks_NHW = None if sample.masks_NHW is None else pad_to(sample.masks_NHW, size)
    return dataclasses.replace(sample, image_CHW=pad_to(sample.image_CHW, size), masks_NHW=masks_NHW)


def mask_extents(masks_NHW: Tensor) -> Tensor:
    """Bounding boxes of masks, float32; zeros for an empty mask."""
    boxes_N4 = torch.zeros(len(masks_NHW), 4)
    seen_N = masks_NHW.flatten(1).any(1).bool()
    # torchvision's boxes include the last pixel; here the end is exclusive.
    boxes_N4[seen_N] = masks_to_boxes(masks_NHW[seen_N]) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return boxes_N4


def _intersect(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])], 1)


def _random_part(crop: Crop, height: int, width: int, generator: Generator) -> Crop:
    """A random part of at most this size."""
    height, width = min(height, crop.height), min(width, crop.width)
    top = _integer(generator, 0, crop.height - height)
    left = _integer(generator, 0, crop.width - width)
    return crop.crop(top, left, height, width)


def _integer(generator: Generator, low: int, high: int) -> int:
    """A random integer from ``low`` to ``high``, inclusive."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _choice(generator: Generator, numbers: Sequence[int]) -> int:
    return numbers[_integer(generator, 0, len(numbers) - 1)]
