"""Predicts objects in images of any size, in pixels of the image.

Shapes: B batch, C channels, H W pixels, N objects. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.resizing import fit_size
from vitsplit.errors import ConfigError
from vitsplit.tasks.base import Forward
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.decoder import Detections, Limits
from vitsplit.types import LayerTaps


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
