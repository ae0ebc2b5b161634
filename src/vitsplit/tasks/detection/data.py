"""Samples, batches and splits of detection data.

Shapes: B batch, N objects of an image, C channels, H W pixels. Boxes are (x1, y1, x2, y2) in pixels, where x2 and y2
are the edges themselves: a box around the whole image is (0, 0, W, H).
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
        masks_NHW: uint8, 0 or 1; None where the data has boxes only.
        crowd_N: bool: regions of many objects (COCO's ``iscrowd``), which are neither trained on nor counted as missed.
        name: The image's file.
        image_id: Its id in the annotations.
        extent: Size of the picture where what pads it is to be the mean color; None: its padding is black.
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
    """Samples, padded with zeros below and at the right to one size. Crowds are left out.

    Attributes:
        image_BCHW: uint8.
        sizes: Height and width of every image before it was padded.
        boxes: (N, 4) float32 per image.
        labels: (N,) int64 per image.
        masks: (N, H, W) uint8 per image, of the padded size; None where the data has boxes only.
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
        root: Its folder.
        split: ``train``, ``val``, ``test``, or VOC's ``trainval``.
        source: The file or folder that holds the labels.
        classes: The classes, in the order of their indices.
        category_ids: The id of every class in the labels: what results must be written with.
        items: The images with their objects.
        has_masks: Whether every object that is no crowd has a mask, and masks are wanted.
        changed: What is not as it was annotated (``annotations.CHANGES``), to its places.
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
        """Images in the order of the samples, and the files of labels, by their names in the data set's folder."""
        labels = [self.source] if self.source.is_file() else []
        paths = [path for item in self.items for path in (item.path, item.labels) if path is not None]
        return relative_names(self.root, [*paths, *labels])

    def load_image(self, index: int) -> Tensor:
        """Reads ``image_CHW`` (uint8, RGB) alone.

        Raises:
            DataError: The file cannot be read, or has another size than its labels say.
        """
        item = self.items[index]
        image_CHW = read_image(item.path)
        require_annotated_size(image_CHW.shape[-2:], item, self.source)
        return image_CHW

    def load(self, index: int) -> DetectionSample:
        """Reads one sample. Boxes are cut at the image's edges, by less than a pixel.

        Raises:
            DataError: As ``load_image``.
        """
        return self.label(index, self.load_image(index))

    def label(self, index: int, image_CHW: Tensor) -> DetectionSample:
        """The sample of an image that was read before."""
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
        """The labels as COCO's JSON, for evaluators: what was left out is not in it, ids are the original ones.

        Annotation ids are raised where the smallest is not positive: evaluators take a match with 0 for none.
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
    """The mask of an object; a crowd without one fills its box."""
    return box_polygon(each.box) if each.segmentation is None else each.segmentation


def require_annotated_size(size: Sequence[int], item: AnnotatedImage, source: Path) -> None:
    """Raises a DataError if an image has another size (height and width) than its labels say."""
    height, width = size
    if (height, width) == (item.height, item.width):
        return
    turned = " The image may have been turned by its EXIF rotation: save it upright." * (
        (height, width) == (item.width, item.height)
    )
    raise DataError(
        f"{item.path}: the image is {width}x{height} (width x height), but {source} says {item.width}x{item.height}. "
        f"Its boxes belong to another picture or size: label it again, or restore the image.{turned}"
    )
