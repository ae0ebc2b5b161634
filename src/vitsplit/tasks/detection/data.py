"""Samples, batches and splits of detection data.

Shapes: B batch, N objects of an image, C channels, H W pixels. Boxes are (x1, y1, x2, y2) in pixels, where x2 and y2
are exclusive: a box around the whole image is (0, 0, W, H).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsplit.data.classes import ClassList
from vitsplit.data.content_size import Extent, stack_extents
from vitsplit.data.folders import relative_names
from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.tasks.detection.annotations import AnnotatedImage, Annotation, Box, Segmentation
from vitsplit.tasks.detection.masks import box_polygon, mask_area, rasterize


@dataclass(frozen=True)
class DetectionSample:
    """An image and its objects.

    Attributes:
        image_CHW: uint8, RGB.
        boxes_N4: float32.
        labels_N: int64, class indices from 0.
        masks_NHW: uint8, 0 or 1; None if the data has boxes only.
        crowd_N: bool: crowd regions (COCO's ``iscrowd``), excluded from training and ignored in evaluation.
        name: The image's file.
        image_id: The image's id in the annotations.
        extent: Size of the image content, if the padding is to be the mean color; None: the padding is black.
    """

    image_CHW: Tensor
    boxes_N4: Tensor
    labels_N: Tensor
    masks_NHW: Tensor | None
    crowd_N: Tensor
    name: str
    image_id: int
    extent: Extent | None = None


@dataclass(frozen=True)
class DetectionBatch:
    """Samples padded with zeros below and to the right to one size, without crowds.

    Attributes:
        image_BCHW: uint8.
        sizes: Height and width of each image before padding.
        boxes: (N, 4) float32 per image.
        labels: (N,) int64 per image.
        masks: (N, H, W) uint8 per image, of the padded size; None if the data has boxes only.
        names: The images' files.
        extent_B2: See ``tasks.base.Batch``.
    """

    image_BCHW: Tensor
    sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor] | None
    names: list[str]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> DetectionBatch:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> DetectionBatch:
        """The batch in pinned memory; called by the data loader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Any) -> DetectionBatch:
        return DetectionBatch(
            function(self.image_BCHW),
            self.sizes,
            [function(boxes_N4) for boxes_N4 in self.boxes],
            [function(labels_N) for labels_N in self.labels],
            None if self.masks is None else [function(masks_NHW) for masks_NHW in self.masks],
            self.names,
            None if self.extent_B2 is None else function(self.extent_B2),
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
        stack_extents([sample.extent for sample in samples]),
    )


@dataclass(frozen=True)
class DetectionSet:
    """One split of a data set.

    Attributes:
        root: The folder of the data set.
        split: ``train``, ``val``, ``test``, or VOC's ``trainval``.
        source: The file or folder of the labels.
        classes: The classes, in the order of their indices.
        category_ids: The id of each class in the labels, used in results.
        items: The images with their objects.
        has_masks: Whether every object except crowds has a mask, and masks are enabled.
        changed: Kind of correction (``annotations.CHANGES``) to the annotations corrected on reading.
    """

    root: Path
    split: str
    source: Path
    classes: ClassList
    category_ids: tuple[int, ...]
    items: tuple[AnnotatedImage, ...]
    has_masks: bool = False
    changed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def files(self) -> dict[str, Path]:
        """Name in the data set to file, for images in the order of the samples, and label files."""
        labels = [self.source] if self.source.is_file() else []
        paths = [path for item in self.items for path in (item.path, item.labels) if path is not None]
        return relative_names(self.root, [*paths, *labels])

    def load_image(self, index: int) -> Tensor:
        """Reads only ``image_CHW`` (uint8, RGB).

        Raises:
            DataError: The file cannot be read, or its size differs from its labels.
        """
        item = self.items[index]
        image_CHW = read_image(item.path)
        require_annotated_size(image_CHW.shape[-2:], item, self.source)
        return image_CHW

    def load(self, index: int) -> DetectionSample:
        """Reads one sample. Boxes are clipped to the image, by less than a pixel.

        Raises:
            DataError: As ``load_image``.
        """
        return self.label(index, self.load_image(index))

    def label(self, index: int, image_CHW: Tensor) -> DetectionSample:
        """The sample of an image that is already loaded."""
        item = self.items[index]
        objects = item.annotations
        boxes_N4 = torch.tensor([corners(each.box, item) for each in objects], dtype=torch.float32).reshape(-1, 4)
        return DetectionSample(
            image_CHW,
            boxes_N4,
            torch.tensor([each.label for each in objects], dtype=torch.int64),
            self._masks(item) if self.has_masks else None,
            torch.tensor([each.crowd for each in objects], dtype=torch.bool),
            str(item.path),
            item.image_id,
        )

    def coco_truth(self) -> dict[str, Any]:
        """The labels in COCO's JSON format, for evaluators, without omitted objects and with the original ids.

        Annotation ids are shifted if the smallest is not positive: evaluators treat a match with id 0 as no match.
        """
        lowest = min((each.id for item in self.items for each in item.annotations), default=1)
        shift = max(0, 1 - lowest)
        return {
            "info": {},
            "licenses": [],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.classes.names, strict=True)
            ],
            "images": [
                {"id": item.image_id, "file_name": item.path.name, "width": item.width, "height": item.height}
                for item in self.items
            ],
            "annotations": [
                self._truth(each, item) | {"id": each.id + shift} for item in self.items for each in item.annotations
            ],
        }

    def _masks(self, item: AnnotatedImage) -> Tensor:
        masks_NHW = torch.zeros(len(item.annotations), item.height, item.width, dtype=torch.uint8)
        for n, each in enumerate(item.annotations):
            masks_NHW[n] = torch.from_numpy(rasterize(mask_or_box(each), item.height, item.width))
        return masks_NHW

    def _truth(self, each: Annotation, item: AnnotatedImage) -> dict[str, Any]:
        area = each.area
        if area is None:
            area = each.box[2] * each.box[3]
            if each.segmentation is not None:
                area = mask_area(each.segmentation, item.height, item.width)
        truth = {
            "image_id": item.image_id,
            "category_id": self.category_ids[each.label],
            "bbox": list(each.box),
            "area": area,
            "iscrowd": int(each.crowd),
        }
        if self.has_masks:
            mask = mask_or_box(each)
            truth["segmentation"] = [part.tolist() for part in mask] if isinstance(mask, tuple) else mask
        return truth


def corners(box: Box, item: AnnotatedImage) -> Box:
    """(x, y, width, height) as (x1, y1, x2, y2) inside the image."""
    x, y, width, height = box
    return max(x, 0.0), max(y, 0.0), min(x + width, item.width), min(y + height, item.height)


def mask_or_box(each: Annotation) -> Segmentation:
    """The mask of an object; for a crowd without one, its box."""
    return box_polygon(each.box) if each.segmentation is None else each.segmentation


def require_annotated_size(size: Sequence[int], item: AnnotatedImage, source: Path) -> None:
    """Raises a DataError if the size of an image (height and width) differs from its labels."""
    height, width = size
    if (height, width) == (item.height, item.width):
        return
    rotated = " The image may have been rotated by its EXIF orientation: save it upright." * (
        (height, width) == (item.width, item.height)
    )
    raise DataError(
        f"{item.path}: the image is {width}x{height} (width x height), but {source} says {item.width}x{item.height}. "
        f"Its boxes belong to another image or size: label it again, or restore the image.{rotated}"
    )
