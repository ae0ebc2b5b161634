"""From an image of any size to a mask: whole or in windows, at one scale or several, mirrored or not.

Shapes: B batch, C channels, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.classes import ClassList
from vitsplit.errors import ConfigError
from vitsplit.tasks.base import Forward
from vitsplit.tasks.segmentation.augment import fit_size
from vitsplit.tasks.segmentation.loss import resize_logits
from vitsplit.training.config import SegmentationConfig

WINDOWS_PER_PASS = 4


@dataclass(frozen=True)
class SegmentationPrediction:
    """A segmented image.

    Attributes:
        mask: (H, W) uint8, class ids at the image's own size.
        classes: Names and colours of the classes.
        image: (H, W, 3) uint8, the image.
    """

    mask: NDArray[np.uint8]
    classes: ClassList
    image: NDArray[np.uint8]

    def colour_mask(self) -> Image.Image:
        """The mask as a palette image: pixel values are class ids, shown in the classes' colours."""
        picture = Image.fromarray(self.mask)
        picture.putpalette([value for colour in self.classes.colours for value in colour])
        return picture

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The image with the classes' colours laid over it."""
        palette = np.array(self.classes.colours, dtype=np.float32)
        mixed = (1 - opacity) * self.image + opacity * palette[self.mask]
        return Image.fromarray(mixed.round().astype(np.uint8))

    def shares(self) -> dict[str, float]:
        """Class name to its share of the pixels, largest first, of the classes that were found."""
        counts = np.bincount(self.mask.flatten(), minlength=len(self.classes.names)) / self.mask.size
        found = sorted(zip(self.classes.names, counts.tolist(), strict=True), key=lambda pair: -pair[1])
        return {name: share for name, share in found if share > 0}

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes ``NAME_mask.png`` (class ids with a palette) and ``NAME_overlay.jpg``, and returns their paths."""
        mask_path, overlay_path = Path(folder) / f"{name}_mask.png", Path(folder) / f"{name}_overlay.jpg"
        mask_path.parent.mkdir(parents=True, exist_ok=True)
        self.colour_mask().save(mask_path)
        self.overlay().save(overlay_path, quality=92)
        return mask_path, overlay_path


def segment(forward: Forward, image_CHW: Tensor, config: SegmentationConfig) -> Tensor:
    """The mask of one image.

    Args:
        forward: Images (uint8) to logits and taps.
        image_CHW: uint8, any size.
        config: ``image_scale``, ``crop_size`` and the ``test_`` settings are used.

    Returns:
        ``mask_HW`` uint8, at the image's own size.
    """
    size = (image_CHW.shape[-2], image_CHW.shape[-1])
    base_size = fit_size(size, config.image_scale)
    views = [
        (scale, mirrored)
        for scale in config.test_scales
        for mirrored in ((False, True) if config.test_flip else (False,))
    ]
    total_KHW: Tensor | None = None
    for scale, mirrored in views:
        view_size = [max(1, round(side * scale)) for side in base_size]
        view_CHW = TF.resize(image_CHW, view_size, antialias=True)
        logits_1KHW = _view_logits(forward, view_CHW.flip(-1) if mirrored else view_CHW, config)
        logits_1KHW = F.interpolate(
            logits_1KHW.flip(-1) if mirrored else logits_1KHW, size=size, mode="bilinear", align_corners=False
        )
        # Views are averaged as probabilities; a single view needs no softmax for its largest class.
        share_KHW = logits_1KHW[0].softmax(0) if len(views) > 1 else logits_1KHW[0]
        total_KHW = share_KHW if total_KHW is None else total_KHW + share_KHW
    assert total_KHW is not None
    return total_KHW.argmax(0).to(torch.uint8)


def _view_logits(forward: Forward, view_CHW: Tensor, config: SegmentationConfig) -> Tensor:
    """(1, K, H, W) float32 at the view's size; overlapping windows are averaged."""
    height, width = view_CHW.shape[-2:]
    if config.test_mode == "whole":
        return _window_logits(forward, view_CHW[None], config)
    stride = config.test_stride or (max(1, config.crop_size[0] * 2 // 3), max(1, config.crop_size[1] * 2 // 3))
    boxes = list(windows((height, width), config.crop_size, stride))
    if len(boxes) == 1:
        return _window_logits(forward, view_CHW[None], config)
    total_1KHW: Tensor | None = None
    count_HW = torch.zeros(height, width)
    for start in range(0, len(boxes), WINDOWS_PER_PASS):
        chunk = boxes[start : start + WINDOWS_PER_PASS]
        batch_BCHW = torch.stack([view_CHW[:, top:bottom, left:right] for top, left, bottom, right in chunk])
        for logits_KHW, (top, left, bottom, right) in zip(
            _window_logits(forward, batch_BCHW, config), chunk, strict=True
        ):
            if total_1KHW is None:
                total_1KHW = logits_KHW.new_zeros(1, logits_KHW.shape[0], height, width)
            total_1KHW[0, :, top:bottom, left:right] += logits_KHW
            count_HW[top:bottom, left:right] += 1
    assert total_1KHW is not None
    return total_1KHW / count_HW.to(total_1KHW.device)


def _window_logits(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig) -> Tensor:
    logits_BKhw, taps = forward(image_BCHW)
    return resize_logits(logits_BKhw.float(), taps.image_size, taps.padding, config.pad_logits)


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) that cover ``size``; the last of a row or column is moved inwards, not shrunk.

    Raises:
        ConfigError: The stride is longer than the window, so that pixels between two windows would never be seen.
    """
    for side, length, step in zip(size, window, stride, strict=True):
        # Two windows, at either end, may still meet in the middle.
        if step > length and side > 2 * length:
            raise ConfigError(
                f"test_stride {stride} steps over pixels between windows of crop_size {window}: "
                "make it at most as large, or leave it out."
            )
    for top in _starts(size[0], window[0], stride[0]):
        for left in _starts(size[1], window[1], stride[1]):
            yield top, left, min(top + window[0], size[0]), min(left + window[1], size[1])


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = max(0, -(-(length - window) // stride))
    return [max(0, min(step * stride, length - window)) for step in range(steps + 1)]
