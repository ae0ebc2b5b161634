"""How each task's labels follow a crop that was drawn for all heads. A further task is one class and one line.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.engine.shared_crop import Crop
from vitsplit.tasks.base import Task
from vitsplit.tasks.depth import data as depth
from vitsplit.tasks.depth.task import DepthTask
from vitsplit.tasks.detection import data as detection
from vitsplit.tasks.detection.task import DetectionTask
from vitsplit.tasks.segmentation import data as segmentation
from vitsplit.tasks.segmentation.task import SegmentationTask


class Labels(Protocol):
    """The labels of one task's training images."""

    def paths(self) -> list[Path]:
        """The images, in the order of their indices."""
        ...

    def sample(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: Crop) -> Any:
        """The task's own training sample for a crop of an image.

        Args:
            index: The image's place among ``paths``.
            image_CHW: The whole image; its label must be of the same size.
            crop_CHW: The crop as all heads see it.
            crop: Where it lies.

        Raises:
            DataError: The label cannot be used; the message names its file.
        """
        ...


class SegmentationLabels:
    """Masks."""

    def __init__(self, task: SegmentationTask) -> None:
        self.images = task.train_data().data

    def paths(self) -> list[Path]:
        """See ``Labels``."""
        return [image_path for image_path, _ in self.images.items]

    def sample(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: Crop) -> segmentation.SegmentationSample:
        """The crop and its mask, ignored where there is no image."""
        image_path, mask_path = self.images.items[index]
        mask_HW = segmentation.load_mask(mask_path, self.images.labels)
        segmentation.require_same_size(image_CHW.shape[-2:], mask_HW, image_path, mask_path)
        return segmentation.SegmentationSample(crop_CHW, crop.cut_label(mask_HW, IGNORE), str(image_path), crop.extent)


class DepthLabels:
    """Depth maps. Things that are shown s times as large are s times as near: their depth is divided by s."""

    def __init__(self, task: DepthTask) -> None:
        self.images = task.train_data().data
        self.config = task.config

    def paths(self) -> list[Path]:
        """See ``Labels``."""
        return [image_path for image_path, _ in self.images.items]

    def sample(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: Crop) -> depth.DepthSample:
        """The crop and its depths, invalid where there is no image."""
        image_path, depth_path = self.images.items[index]
        depth_HW = depth.load_depth(depth_path, self.images.scale)
        depth.require_same_size(image_CHW.shape[-2:], depth_HW, image_path, depth_path)
        valid_HW = depth.keep_valid(depth_HW, self.config, depth_path)
        nearer_HW = crop.cut_label(valid_HW, 0.0) / crop.zoom
        nearer_HW = depth.keep_range(nearer_HW, self.config.min_depth, self.config.max_depth)
        return depth.DepthSample(crop_CHW, nearer_HW, str(image_path), crop.extent)


class DetectionLabels:
    """Boxes and masks."""

    def __init__(self, task: DetectionTask) -> None:
        self.images = task.train_data().data

    def paths(self) -> list[Path]:
        """See ``Labels``."""
        return [item.path for item in self.images.items]

    def sample(self, index: int, image_CHW: Tensor, crop_CHW: Tensor, crop: Crop) -> detection.DetectionSample:
        """The crop and its objects, cut as detection's own augmentation cuts them."""
        from vitsplit.tasks.detection import transforms

        detection.require_annotated_size(image_CHW.shape[-2:], self.images.items[index], self.images.source)
        # One channel is enough to say where the image lies: its pixels are those of the crop.
        sample = transforms.cut(self.images.label(index, image_CHW[:1]), crop.part)
        return dataclasses.replace(transforms.pad(sample, crop.size), image_CHW=crop_CHW, extent=crop.extent)


LABELS: Mapping[str, Callable[[Any], Labels]] = {
    "segmentation": SegmentationLabels,
    "depth": DepthLabels,
    "detection": DetectionLabels,
}
"""By task: from the task, opened on training images, to its labels."""


def open_labels(tasks: Mapping[str, Task]) -> dict[str, Labels]:
    """The labels of several heads, by the heads' names."""
    return {name: LABELS[task.name](task) for name, task in tasks.items()}
