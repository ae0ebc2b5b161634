"""Predicts depth maps in meters for images of any size.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.resizing import fit_size
from vitsplit.tasks.base import Forward
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.segmentation.loss import resize_logits


def predict_depth(forward: Forward, image_BCHW: Tensor, config: DepthConfig) -> Tensor:
    """Predicts the depth of images of one size.

    Args:
        forward: Maps images (uint8) to depth in meters and taps.
        image_BCHW: uint8, any size.
        config: Uses ``image_scale``, ``pad_output`` and ``test_flip``.

    Returns:
        ``(B, 1, H, W)`` float32 meters, at the images' size.
    """
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    view_BCHW = TF.resize(image_BCHW, list(fit_size(size, config.image_scale)), antialias=True)
    depth_B1HW = _view_depth(forward, view_BCHW, config)
    if config.test_flip:
        depth_B1HW = (depth_B1HW + _view_depth(forward, view_BCHW.flip(-1), config).flip(-1)) / 2
    return F.interpolate(depth_B1HW, size=size, mode="bilinear", align_corners=False)


def _view_depth(forward: Forward, view_BCHW: Tensor, config: DepthConfig) -> Tensor:
    depth_B1hw, taps = forward(view_BCHW)
    return resize_logits(depth_B1hw.float(), taps.image_size, taps.padding, config.pad_output)
