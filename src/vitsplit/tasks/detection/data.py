"""Samples, batches and splits of detection data.

Shapes: B batch, N objects of an image, C channels, H W pixels. Boxes are (x1, y1, x2, y2) in pixels, where x2 and y2
are the edges themselves: a box around the whole image is (0, 0, W, H).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DetectionSample:
    """An image and its objects.

    Attributes:
        image_CHW: uint8, RGB.
        boxes_N4: float32.
        labels_N: int64, class indices from 0.
        masks_NHW: uint8, 0 or 1; None where the data has boxes only.
        crowd_N: bool: regions of many objects (COCO's ``iscrowd``), which are neither trained on nor counted as missed.
        name: The image's file.
        image_id: Its id in the annotations.
    """

    image_CHW: Tensor
    boxes_N4: Tensor
    labels_N: Tensor
    masks_NHW: Tensor | None
    crowd_N: Tensor
    name: str
    image_id: int


@dataclass(frozen=True)
class DetectionBatch:
    """Samples, padded with zeros below and at the right to one size. Crowds are left out.

    Attributes:
        image_BCHW: uint8.
        sizes: Height and width of every image before it was padded.
        boxes: (N, 4) float32 per image.
        labels: (N,) int64 per image.
        masks: (N, H, W) uint8 per image, of the padded size; None where the data has boxes only.
        names: The images' files.
    """

    image_BCHW: Tensor
    sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor] | None
    names: list[str]

    def to(self, device: Any) -> DetectionBatch:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> DetectionBatch:
        """The batch in page-locked memory; called by the data loader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> DetectionBatch:
        return DetectionBatch(
            function(self.image_BCHW),
            self.sizes,
            [function(boxes_N4) for boxes_N4 in self.boxes],
            [function(labels_N) for labels_N in self.labels],
            None if self.masks is None else [function(masks_NHW) for masks_NHW in self.masks],
            self.names,
        )


def collate(samples: Sequence[DetectionSample]) -> DetectionBatch:
    """Pads samples to the largest height and width among them."""
    height = max(sample.image_CHW.shape[-2] for sample in samples)
    width = max(sample.image_CHW.shape[-1] for sample in samples)

    def pad(tensor: Tensor) -> Tensor:
        out = tensor.new_zeros(tensor.shape[0], height, width)
        out[:, : tensor.shape[-2], : tensor.shape[-1]] = tensor
        return out

    kept = [~sample.crowd_N for sample in samples]
    masks = [
        pad(sample.masks_NHW[keep_N])
        for sample, keep_N in zip(samples, kept, strict=True)
        if sample.masks_NHW is not None
    ]
    return DetectionBatch(
        torch.stack([pad(sample.image_CHW) for sample in samples]),
        [(sample.image_CHW.shape[-2], sample.image_CHW.shape[-1]) for sample in samples],
        [sample.boxes_N4[keep_N] for sample, keep_N in zip(samples, kept, strict=True)],
        [sample.labels_N[keep_N] for sample, keep_N in zip(samples, kept, strict=True)],
        masks if len(masks) == len(samples) else None,
        [sample.name for sample in samples],
    )
