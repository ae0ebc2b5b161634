"""The scale-invariant log loss of depth, at the labels' resolution.

Shapes: B batch, h w grid of the output, H W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vitsplit.tasks.segmentation.loss import resize_logits
from vitsplit.types import Padding

EPSILON = 1e-3
"""Meters added before the logarithm, as in the release."""
TINY = 1e-12
"""Minimum of the square root's argument, since its gradient is infinite at zero."""


def silog_sum(
    depth_B1hw: Tensor,
    truth_BHW: Tensor,
    padding: Padding,
    pad_output: Literal["crop", "stretch"],
    variance_focus: float,
) -> Tensor:
    """``N sqrt(var(g) + variance_focus mean(g)^2)`` with ``g = log(depth + 1e-3) - log(truth + 1e-3)``.

    Mean and (unbiased) variance are over all N valid pixels of the batch, as in the release, not per image: scale
    differences between images count as variance in full. Divided by the number of valid pixels, this is the release's
    loss if the batch is processed at once. With several processes or micro-batches, the loss is the mean over the parts
    weighted by their valid pixels (the release on several GPUs: unweighted), since the square root is not additive.

    Args:
        depth_B1hw: Depth of the padded images in meters.
        truth_BHW: Reference depth in meters; 0 is invalid.
        padding: Padding of the images.
        pad_output: Handling of the padding, see ``resize_logits``.
        variance_focus: Weight of the squared mean.

    Returns:
        Scalar float32, differentiable in the depth; 0 without valid pixels.
    """
    with torch.autocast(depth_B1hw.device.type, enabled=False):
        height, width = truth_BHW.shape[-2:]
        depth_BHW = resize_logits(depth_B1hw.float(), (height, width), padding, pad_output)[:, 0]
        valid_BHW = truth_BHW > 0
        count = valid_BHW.sum()
        # Masked sums instead of indexing, which would synchronize with the device.
        gap_BHW = torch.where(valid_BHW, torch.log(depth_BHW + EPSILON) - torch.log(truth_BHW + EPSILON), 0.0)
        mean = gap_BHW.sum() / count.clamp_min(1)
        variance = torch.where(valid_BHW, gap_BHW - mean, 0.0).square().sum() / (count - 1).clamp_min(1)
        return count * (variance + variance_focus * mean.square()).clamp_min(TINY).sqrt()
