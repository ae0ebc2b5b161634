"""Regions whose frozen features are unlike those of the training images, such as objects of unknown classes.

Shapes: B batch, C channels, N tokens, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.backbone.backbone import Backbone
from vitsplit.data.classes import IGNORE
from vitsplit.data.resizing import fit_size
from vitsplit.errors import DataError
from vitsplit.nn.familiarity import Familiarity
from vitsplit.report import spread_evenly
from vitsplit.tasks.base import Forward
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.data import SegmentationSet
from vitsplit.tasks.segmentation.loss import resize_logits
from vitsplit.types import LayerTaps, TapRequest

MOST_IMAGES, MOST_TOKENS = 128, 1 << 16


@torch.inference_mode()
def familiar_tokens(images: SegmentationSet, config: SegmentationConfig, backbone: Backbone, layer: int) -> Tensor:
    """Tokens of the training images, of patches at least half of whose pixels are labeled.

    Args:
        images: The training images, of which at most 128 are used, evenly spaced, at the size of the prediction.
        config: Uses ``image_scale``.
        backbone: The frozen model, on its device.
        layer: Index of the block, whose output is normalized.

    Returns:
        (N, D) float32, at most 65536 evenly spaced tokens.

    Raises:
        DataError: No patch is labeled, or a file cannot be read.
    """
    found: list[Tensor] = []
    for index in spread_evenly(MOST_IMAGES, len(images)):
        sample = images.load(index)
        image_1CHW = _resized(sample.image_CHW[None], config).to(backbone.mean_C11.device)
        taps = backbone(image_1CHW, TapRequest(maps=frozenset({layer})))
        token_ND = taps.maps[layer][0].float().flatten(1).T
        found.append(token_ND[_labeled(sample.mask_HW, taps, backbone.patch_size).to(token_ND.device)])
    x_ND = torch.cat(found)
    if len(x_ND) == 0:
        raise DataError(f"{images.root}: no region of the training images is labeled. Check their masks.")
    count = min(len(x_ND), MOST_TOKENS)
    return x_ND[torch.arange(count, device=x_ND.device) * len(x_ND) // count]


def unfamiliarity(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig, familiarity: Familiarity) -> Tensor:
    """Distances to the training images' features at the images' size: (B, H, W) float32.

    Of whole images at scale 1, whatever windows, scales and flips the prediction averages.
    """
    _, taps = forward(_resized(image_BCHW, config))
    distance_B1hw = familiarity(taps.maps[familiarity.layer])[:, None]
    distance_B1HW = resize_logits(distance_B1hw, taps.image_size, taps.padding)
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    return F.interpolate(distance_B1HW, size=size, mode="bilinear", align_corners=False)[:, 0]


def remember_first(forward: Forward) -> Forward:
    """The forward pass, which returns its first result again for equal images: the whole image is needed twice."""
    first: list[tuple[Tensor, tuple[Any, LayerTaps]]] = []

    def remembering(image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        if first and first[0][0].shape == image_BCHW.shape and torch.equal(first[0][0], image_BCHW):
            return first[0][1]
        result = forward(image_BCHW)
        if not first:
            first.append((image_BCHW, result))
        return result

    return remembering


def _resized(image_BCHW: Tensor, config: SegmentationConfig) -> Tensor:
    size = fit_size((image_BCHW.shape[-2], image_BCHW.shape[-1]), config.image_scale)
    resized: Tensor = TF.resize(image_BCHW, list(size), antialias=True)
    return resized


def _labeled(mask_HW: Tensor, taps: LayerTaps, patch_size: int) -> Tensor:
    """Whether each token's patch is labeled: (h * w,) bool."""
    valid_11HW = (mask_HW != IGNORE)[None, None].float()
    valid_11HW = F.interpolate(valid_11HW, size=taps.image_size, mode="nearest")
    pad = taps.padding
    valid_11HW = F.pad(valid_11HW, (pad.left, pad.right, pad.top, pad.bottom))
    return F.avg_pool2d(valid_11HW, patch_size).flatten() >= 0.5
