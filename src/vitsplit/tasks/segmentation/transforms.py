"""The paper's augmentation (Section 4.1): scale, crop with a limit on one class, flip, photometric distortion, padding.

Images are uint8; all random numbers are drawn from the given generator.

Shapes: C channels, H W pixels, K label values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.data.content_size import Extent
from vitsplit.data.crops import Crop, SharedCrop, pad_to, random_crop, random_size, uniform
from vitsplit.data.photometric import distort
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import (
    SegmentationSample,
    SegmentationSet,
    load_mask,
    require_same_size,
)

CROP_TRIES = 10


@dataclass(frozen=True)
class TrainSegmentation:
    """Training samples: ``data[index, seed]`` is the sample ``index``, augmented with the random seed ``seed``.

    A pure function of both, so samples do not depend on the number of workers or on resuming.
    """

    data: SegmentationSet
    config: SegmentationConfig

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> SegmentationSample:
        index, seed = key
        sample = self.data.load(index)
        generator = torch.Generator().manual_seed(seed)
        image_CHW, mask_HW, extent = augment(sample.image_CHW, sample.mask_HW, self.config, generator)
        return SegmentationSample(image_CHW, mask_HW, sample.name, extent if self.config.pad_color == "mean" else None)

    def paths(self) -> list[Path]:
        """See ``CropData``."""
        return [image_path for image_path, _ in self.data.items]

    def cropped(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: SharedCrop) -> SegmentationSample:
        """See ``CropData``; the padding is ignored in the mask."""
        image_path, mask_path = self.data.items[index]
        mask_HW = load_mask(mask_path, self.data.labels)
        require_same_size(image_CHW.shape[-2:], mask_HW, image_path, mask_path)
        return SegmentationSample(crop_CHW, crop.cut_label(mask_HW, IGNORE), str(image_path), crop.extent)


def augment(
    image_CHW: Tensor, mask_HW: Tensor, config: SegmentationConfig, generator: Generator
) -> tuple[Tensor, Tensor, Extent]:
    """Makes one training crop.

    As in mmseg: resize by a random factor, crop, flip, distort the colors, pad.

    Args:
        image_CHW: uint8, RGB.
        mask_HW: uint8, 255 is ignored.
        config: Crop size, scales, probabilities.
        generator: Random number generator.

    Returns:
        ``image_CHW`` and ``mask_HW`` of ``config.crop_size``, padded below and to the right with zeros and 255; and the
        size before padding.
    """
    size = random_size(mask_HW.shape, config.image_scale, config.scale_range, generator)
    crop = varied_crop(mask_HW, size, config, generator)
    crop = crop._replace(flipped=uniform(generator) < config.flip)
    image_CHW = crop.image(image_CHW)
    if config.photometric:
        image_CHW = distort(image_CHW, generator)
    padded_HW = pad_to(crop.labels(mask_HW), config.crop_size, IGNORE)
    return pad_to(image_CHW, config.crop_size), padded_HW, (crop.height, crop.width)


def varied_crop(mask_HW: Tensor, size: tuple[int, int], config: SegmentationConfig, generator: Generator) -> Crop:
    """Samples a crop of the image resized to ``size``, and resamples it while one class covers too much of it.

    As in mmseg, a crop is rejected if one class covers at least ``max_class_ratio`` of its labeled pixels, or no pixel
    is labeled. The tenth crop is always accepted.
    """
    can_vary = size[0] > config.crop_size[0] or size[1] > config.crop_size[1]
    tries = CROP_TRIES if config.max_class_ratio < 1.0 and can_vary else 1
    for attempt in range(tries):
        crop = random_crop(mask_HW.shape, size, config.crop_size, generator)
        if attempt == tries - 1 or _is_varied(mask_HW, crop, config.max_class_ratio):
            break
    return crop


def _is_varied(mask_HW: Tensor, crop: Crop, max_class_ratio: float) -> bool:
    part_HW = mask_HW[crop.pixels(mask_HW.shape)]
    # A crop that will be downscaled is counted at about its final size.
    step = max(1, len(part_HW) // crop.height)
    counts_K = torch.bincount(part_HW[::step, ::step].flatten(), minlength=IGNORE + 1)[:IGNORE]
    return float(counts_K.max()) < max_class_ratio * float(counts_K.sum())
