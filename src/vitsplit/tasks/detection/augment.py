"""Augmentation of detection data: DETR's multi-scale as in the authors' release, large-scale jitter, or none.

Whatever is resized and cropped in turn is one part of the image that is resized once: a ``View`` says which.

Shapes: N objects, C channels, H W pixels. Boxes are (x1, y1, x2, y2), see ``data.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.data import DetectionSample
from vitsplit.tasks.segmentation.augment import fit_size

RELEASE_LARGEST_SIDE = 800
"""The largest of ``train_sides`` for which DETR's intermediate sizes are meant; they scale with it."""
FIRST_SIDES = (400, 500, 600)
FIRST_CROP = (384, 600)
"""Smallest and largest side of the crop that DETR takes before it resizes a second time."""
MIN_SIDE = 1.0
"""Objects whose box is less wide or high than this (in pixels) afterwards are dropped."""


class View(NamedTuple):
    """A part of an image, by its edges in pixels of the file, and the size that it is resized to."""

    top: float
    left: float
    bottom: float
    right: float
    height: int
    width: int

    def resize(self, size: tuple[int, int]) -> View:
        """The same part at another size."""
        return self._replace(height=size[0], width=size[1])

    def crop(self, top: int, left: int, height: int, width: int) -> View:
        """A part of it, given in pixels of its size."""
        scale_y, scale_x = (self.bottom - self.top) / self.height, (self.right - self.left) / self.width
        y, x = self.top + top * scale_y, self.left + left * scale_x
        return View(y, x, y + height * scale_y, x + width * scale_x, height, width)


def augment(sample: DetectionSample, config: DetectionConfig, generator: Generator) -> DetectionSample:
    """Makes one training sample.

    ``config.jitter`` decides on the size, then the image is flipped with probability ``config.flip``:

    - ``detr``: ``random_detr_view``. The size varies; ``collate`` pads.
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
    whole = View(0, 0, *size, *size)
    if config.jitter == "detr":
        view = random_detr_view(whole, config, generator)
    elif config.jitter == "large-scale":
        view = random_large_scale_view(whole, config, generator)
    else:
        view = whole.resize(fit_size(size, config.image_scale))
    sample = cut(sample, view)
    if float(torch.rand((), generator=generator)) < config.flip:
        sample = flip(sample)
    if config.pad_color == "mean":
        sample = dataclasses.replace(sample, extent=(view.height, view.width))
    return pad(sample, config.crop_size) if config.jitter == "large-scale" else sample


def fit(image_CHW: Tensor, config: DetectionConfig) -> tuple[Tensor, tuple[float, float]]:
    """Resizes an image as it is tested: the largest size of its shape that fits in ``config.image_scale``.

    Returns:
        The image (uint8), and the factors in y and x by which it grew: a box on it, divided by them, is one on the
        original.
    """
    height, width = image_CHW.shape[-2:]
    size = fit_size((height, width), config.image_scale)
    return _resize_image(image_CHW, size), (size[0] / height, size[1] / width)


def random_detr_view(view: View, config: DetectionConfig, generator: Generator) -> View:
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
        view = view.resize(fit_size((view.height, view.width), (longest, side)))
        height = _integer(generator, min(view.height, low), min(view.height, high))
        width = _integer(generator, min(view.width, low), min(view.width, high))
        view = _random_crop(view, height, width, generator)
    side = _choice(generator, config.train_sides)
    view = view.resize(fit_size((view.height, view.width), (longest, side)))
    return _random_crop(view, *config.crop_size, generator)


def random_large_scale_view(view: View, config: DetectionConfig, generator: Generator) -> View:
    """Large-scale jitter (Ghiasi et al. 2021): draws a size, and a part of at most ``crop_size`` of it."""
    low, high = config.scale_range
    factor = low + (high - low) * float(torch.rand((), generator=generator))
    factor *= min(config.crop_size[0] / view.height, config.crop_size[1] / view.width)
    view = view.resize((max(1, round(view.height * factor)), max(1, round(view.width * factor))))
    return _random_crop(view, *config.crop_size, generator)


def cut(sample: DetectionSample, view: View) -> DetectionSample:
    """Cuts a view out of an image and its objects: edges on whole pixels of the file, then one resize.

    A box that the edge cuts is tightened to what is left of its mask, as mmdet does (torchvision only clips it); a box
    that is not cut stays as it was annotated, which is finer than whole pixels.
    """
    rows = _whole_pixels(view.top, view.bottom, sample.image_CHW.shape[-2])
    columns = _whole_pixels(view.left, view.right, sample.image_CHW.shape[-1])
    size = (view.height, view.width)
    corner_4 = torch.tensor([columns.start, rows.start] * 2)
    extent_4 = torch.tensor([columns.stop, rows.stop] * 2) - corner_4
    boxes_N4 = sample.boxes_N4 - corner_4
    inside_N4 = torch.minimum(boxes_N4.clamp_min(0), extent_4)
    masks_NHW = None
    if sample.masks_NHW is not None:
        masks_NHW = sample.masks_NHW[:, rows, columns]
        is_cut_N = (inside_N4 != boxes_N4).any(1)
        inside_N4[is_cut_N] = _intersect(inside_N4[is_cut_N], mask_extents(masks_NHW[is_cut_N]))
    boxes_N4 = inside_N4 * (torch.tensor([size[1], size[0]] * 2) / extent_4)
    keep_N = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) >= MIN_SIDE).all(1)
    if masks_NHW is not None:
        masks_NHW = _resize_masks(masks_NHW[keep_N], size)
        seen_N = masks_NHW.flatten(1).any(1).bool()
        keep_N[keep_N.clone()] = seen_N
        masks_NHW = masks_NHW[seen_N]
    return dataclasses.replace(
        sample,
        image_CHW=_resize_image(sample.image_CHW[:, rows, columns], size),
        boxes_N4=boxes_N4[keep_N],
        labels_N=sample.labels_N[keep_N],
        masks_NHW=masks_NHW,
        crowd_N=sample.crowd_N[keep_N],
    )


def flip(sample: DetectionSample) -> DetectionSample:
    """Mirrors left and right."""
    x1_N, y1_N, x2_N, y2_N = sample.boxes_N4.unbind(1)
    width = sample.image_CHW.shape[-1]
    return dataclasses.replace(
        sample,
        image_CHW=sample.image_CHW.flip(-1),
        boxes_N4=torch.stack([width - x2_N, y1_N, width - x1_N, y2_N], 1),
        masks_NHW=None if sample.masks_NHW is None else sample.masks_NHW.flip(-1),
    )


def pad(sample: DetectionSample, size: tuple[int, int]) -> DetectionSample:
    """Adds zeros below and at the right up to a height and width."""
    padding = [0, 0, size[1] - sample.image_CHW.shape[-1], size[0] - sample.image_CHW.shape[-2]]
    masks_NHW = None if sample.masks_NHW is None else F.pad(sample.masks_NHW, padding)
    return dataclasses.replace(sample, image_CHW=F.pad(sample.image_CHW, padding), masks_NHW=masks_NHW)


def mask_extents(masks_NHW: Tensor) -> Tensor:
    """The boxes around the pixels of masks, float32; one without pixels has no width."""
    edges = []
    for seen_NL in (masks_NHW.any(1).bool(), masks_NHW.any(2).bool()):
        length = seen_NL.shape[1]
        first_N = seen_NL.int().argmax(1)
        last_N = length - seen_NL.flip(1).int().argmax(1)
        edges.append((first_N, torch.where(seen_NL.any(1), last_N, first_N)))
    (x1_N, x2_N), (y1_N, y2_N) = edges
    return torch.stack([x1_N, y1_N, x2_N, y2_N], 1).float()


def _intersect(a_N4: Tensor, b_N4: Tensor) -> Tensor:
    return torch.cat([torch.maximum(a_N4[:, :2], b_N4[:, :2]), torch.minimum(a_N4[:, 2:], b_N4[:, 2:])], 1)


def _resize_image(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    if image_CHW.shape[-2:] != size:
        # Channels last: torchvision then resizes 8-bit images with vector instructions.
        image_CHW = image_CHW[None].contiguous(memory_format=torch.channels_last)[0]
        image_CHW = F.resize(image_CHW, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return image_CHW


def _resize_masks(masks_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks_NHW):  # torchvision resizes no image without channels
        return masks_NHW.new_zeros(0, *size)
    return F.resize(masks_NHW, list(size), interpolation=InterpolationMode.NEAREST_EXACT)


def _random_crop(view: View, height: int, width: int, generator: Generator) -> View:
    """A crop of a size, or of the view's own where that is smaller."""
    height, width = min(height, view.height), min(width, view.width)
    top = _integer(generator, 0, view.height - height)
    left = _integer(generator, 0, view.width - width)
    return view.crop(top, left, height, width)


def _whole_pixels(start: float, stop: float, limit: int) -> slice:
    """At least one pixel, inside the image."""
    low = min(round(start), limit - 1)
    return slice(low, min(max(round(stop), low + 1), limit))


def _integer(generator: Generator, low: int, high: int) -> int:
    """Of ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _choice(generator: Generator, numbers: Sequence[int]) -> int:
    return numbers[_integer(generator, 0, len(numbers) - 1)]
