"""Predicts objects in images of any size, in pixels of the image.

Shapes: B batch, C channels, H W pixels, N objects, m bins per side of a mask. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.classes import ClassList
from vitsplit.data.resizing import fit_size
from vitsplit.errors import ConfigError
from vitsplit.tasks.base import Forward
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import Detections, Limits
from vitsplit.tasks.detection.draw import draw_objects
from vitsplit.types import LayerTaps

DRAWN_SCORE = 0.5
"""Objects with a lower score are not drawn."""


@dataclass(frozen=True)
class DetectionPrediction:
    """The objects in an image, by descending score.

    Attributes:
        boxes: (N, 4) float32.
        labels: (N,) int64, class indices from 0.
        scores: (N,) float32, in 0..1.
        mask_bins: (N, m, m) float32, mask probabilities on m x m bins over each box; None without masks. Masks at the
            image's size are computed on demand, since a hundred of them need a lot of memory.
        classes: Names and colors of the classes.
        category_ids: The id of each class in the training annotations.
        image: (H, W, 3) uint8.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    mask_bins: NDArray[np.float32] | None
    classes: ClassList
    category_ids: tuple[int, ...]
    image: NDArray[np.uint8]

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """(N, H, W) bool; None without masks. Computed at every access."""
        if self.mask_bins is None:
            return None
        return np.stack([*self.each_mask()]) if len(self.boxes) else np.zeros((0, *self.image.shape[:2]), dtype=bool)

    def each_mask(self) -> Iterator[NDArray[np.bool_]]:
        """The masks one by one, (H, W) bool.

        Raises:
            ValueError: The prediction has boxes only.
        """
        if self.mask_bins is None:
            raise ValueError("this prediction has boxes only")
        for bins_mm, box_4 in zip(self.mask_bins, self.boxes, strict=True):
            yield paste(bins_mm, box_4, (self.image.shape[0], self.image.shape[1]))

    def overlay(self, min_score: float = DRAWN_SCORE) -> Image.Image:
        """The image with masks, boxes, names and scores of objects with at least a score."""
        drawn = self.strongest(min_score)
        captions = [
            f"{self.classes.names[label]} {score:.2f}" for label, score in zip(drawn.labels, drawn.scores, strict=True)
        ]
        colors = [self.classes.colors[label] for label in drawn.labels]
        masks = None if drawn.mask_bins is None else drawn.each_mask()
        return draw_objects(self.image, drawn.boxes, captions, colors, masks)

    def strongest(self, min_score: float) -> DetectionPrediction:
        """The prediction restricted to objects with at least a score."""
        count = int((self.scores >= min_score).sum())
        return replace(
            self,
            boxes=self.boxes[:count],
            labels=self.labels[:count],
            scores=self.scores[:count],
            mask_bins=None if self.mask_bins is None else self.mask_bins[:count],
        )

    def coco_results(self, image_id: int | str) -> list[dict[str, Any]]:
        """Entries of COCO's results format: ``bbox`` (x, y, width, height), and ``segmentation`` with masks."""
        corners = self.boxes.astype(np.float64)
        entries: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": float(score),
            }
            for (x1, y1, x2, y2), label, score in zip(corners.tolist(), self.labels, self.scores, strict=True)
        ]
        if self.mask_bins is not None:
            for entry, mask_HW in zip(entries, self.each_mask(), strict=True):
                entry["segmentation"] = encode(mask_HW)
        return entries

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes ``NAME_detections.json`` (COCO results, with class names) and ``NAME_overlay.jpg``.

        The image id is NAME, converted to a number if possible, as in COCO's file names.
        """
        json_path, overlay_path = Path(folder) / f"{name}_detections.json", Path(folder) / f"{name}_overlay.jpg"
        json_path.parent.mkdir(parents=True, exist_ok=True)
        stem = Path(name).name
        entries = self.coco_results(int(stem) if stem.isdecimal() else stem)
        for entry, label in zip(entries, self.labels, strict=True):
            entry["category"] = self.classes.names[label]
        json_path.write_text(json.dumps(entries) + "\n", encoding="utf-8")
        self.overlay().save(overlay_path, quality=92)
        return json_path, overlay_path


def detect(forward: Forward, image_BCHW: Tensor, config: DetectionConfig) -> list[Detections]:
    """Detects objects in images of one size.

    Args:
        forward: Maps images (uint8) to detections on the padded image and taps.
        image_BCHW: uint8, any size; resized to fit ``config.image_scale``.
        config: Uses ``image_scale`` and the limits.

    Returns:
        Detections per image, with boxes on the CPU in pixels of the image, clipped to it.

    Raises:
        ConfigError: The limits are wider than those of the decoder.
    """
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    resized_BCHW = TF.resize(image_BCHW, [*fit_size(size, config.image_scale)], antialias=True)
    found, taps = forward(resized_BCHW)
    return [_on_image(_restrict(detections, config), taps, size) for detections in found]


def _restrict(detections: Detections, config: DetectionConfig) -> Detections:
    """Applies limits that are narrower than the decoder's."""
    requested, built = Limits.of(config), detections.limits
    for name, wider in (
        ("score_threshold", requested.score_threshold < built.score_threshold),
        ("nms_threshold", requested.nms_threshold != built.nms_threshold),
        ("max_detections", requested.max_detections > built.max_detections),
    ):
        if wider:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(requested, name)}: the bundle has {getattr(built, name)} "
                f"and discards the other detections. Change it in the bundle's head.json (config, task, {name})."
            )
    keep = (detections.scores_N > requested.score_threshold).nonzero()[: requested.max_detections, 0]
    return _select(detections, detections.boxes_N4, keep)


def _on_image(detections: Detections, taps: LayerTaps, size: tuple[int, int]) -> Detections:
    """Undoes padding and resizing; detections entirely in the padding are dropped.

    The bins of a mask are kept for the clipped box, which is inexact where a box extends into the padding.
    """
    height, width = size
    offset_4 = torch.tensor([taps.padding.left, taps.padding.top] * 2)
    scale_4 = torch.tensor([width / taps.image_size[1], height / taps.image_size[0]] * 2)
    boxes_N4 = (detections.boxes_N4.cpu() - offset_4) * scale_4
    boxes_N4 = boxes_N4.clamp(torch.zeros(4), torch.tensor([width, height] * 2, dtype=torch.float32))
    keep = ((boxes_N4[:, 2] > boxes_N4[:, 0]) & (boxes_N4[:, 3] > boxes_N4[:, 1])).nonzero()[:, 0]
    return _select(detections, boxes_N4, keep)


def _select(detections: Detections, boxes_N4: Tensor, keep: Tensor) -> Detections:
    masks_Nmm = detections.masks_Nmm
    return Detections(
        boxes_N4[keep.to(boxes_N4.device)],
        detections.labels_N[keep.to(detections.labels_N.device)],
        detections.scores_N[keep.to(detections.scores_N.device)],
        None if masks_Nmm is None else masks_Nmm[keep.to(masks_Nmm.device)],
        detections.limits,
    )


def paste(bins_mm: NDArray[np.float32], box_4: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """An object's mask, (H, W) bool, from its probabilities on the bins of its box.

    As torchvision's pasting, but only around the box: the full size would take hundreds of megabytes.
    """
    # torchvision adds one bin on each side.
    border_2 = 2 + (box_4[2:] - box_4[:2]) / len(bins_mm)
    left, top = np.floor(np.maximum(box_4[:2] - border_2, 0)).astype(int).tolist()
    right, bottom = np.ceil(np.minimum(box_4[2:] + border_2, (size[1], size[0]))).astype(int).tolist()
    local_14 = torch.from_numpy(box_4 - np.array([left, top, left, top], dtype=np.float32))[None]
    pasted_11hw = paste_masks_in_image(torch.from_numpy(bins_mm)[None, None], local_14, (bottom - top, right - left))
    mask_HW = np.zeros(size, dtype=bool)
    mask_HW[top:bottom, left:right] = (pasted_11hw[0, 0] > 0.5).numpy()
    return mask_HW


def encode(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run-length encoding, JSON-ready."""
    encoded = mask_api.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
