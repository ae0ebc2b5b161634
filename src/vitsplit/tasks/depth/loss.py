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
"""Metres added before the logarithm, as in the release."""
TINY = 1e-12
"""The square root's argument is at least this: at zero its gradient is infinite."""


def silog_sum(
    depth_B1hw: Tensor,
    truth_BHW: Tensor,
    padding: Padding,
    pad_output: Literal["crop", "stretch"],
    variance_focus: float,
) -> Tensor:
    """``N sqrt(var(g) + variance_focus mean(g)^2)`` with ``g = log(depth + 1e-3) - log(truth + 1e-3)``.

    Mean and (unbiased) variance are over all N valid pixels of the batch at once, as in the release, not image by
    image: a scale that differs from image to image is variance, and counts in full. Divided by the valid pixels this is
    the release's loss where the optimiser step sees its batch whole. Where it is split into processes or micro-batches
    the loss is the mean over the parts, weighted by their valid pixels (the release: on several GPUs, unweighted), as
    the square root of the whole cannot be had from the parts.

    Args:
        depth_B1hw: Metres over the padded images.
        truth_BHW: Metres; 0 where invalid.
        padding: What was put around the images.
        pad_output: What becomes of the padding, see ``resize_logits``.
        variance_focus: Share of the squared mean.

    Returns:
        Scalar float32, differentiable in the depth; 0 without valid pixels.
    """
    with torch.autocast(depth_B1hw.device.type, enabled=False):
        height, width = truth_BHW.shape[-2:]
        depth_BHW = resize_logits(depth_B1hw.float(), (height, width), padding, pad_output)[:, 0]
        valid_BHW = truth_BHW > 0
        count = valid_BHW.sum()
        # Masked sums rather than a list of the valid pixels, whose length the host would have to wait for.
        gap_BHW = torch.where(valid_BHW, torch.log(depth_BHW + EPSILON) - torch.log(truth_BHW + EPSILON), 0.0)
        mean = gap_BHW.sum() / count.clamp_min(1)
        variance = torch.where(valid_BHW, gap_BHW - mean, 0.0).square().sum() / (count - 1).clamp_min(1)
        return count * (variance + variance_focus * mean.square()).clamp_min(TINY).sqrt()
