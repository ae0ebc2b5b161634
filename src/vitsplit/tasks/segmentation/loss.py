"""Losses of semantic segmentation, as sums over valid pixels, one image at a time.

Logits come at a quarter of the patch size; the loss is taken at the labels' resolution. At 150 classes and 512 pixels
an enlarged image of float32 logits is 157 MB, of which autograd would keep several. Here each image's logits are
enlarged, scored, differentiated and forgotten before the next: what stays is the gradient at the logits' own size.

Shapes: B batch, K classes, h w grid of the logits, H W pixels, P pixels in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.types import Padding

PadLogits = Literal["crop", "stretch"]


def resize_logits(
    logits_BKhw: Tensor, image_size: tuple[int, int], padding: Padding, pad_logits: PadLogits = "crop"
) -> Tensor:
    """Logits of the padded image to logits of the image: (B, K, h, w) to (B, K, H, W), bilinear.

    Args:
        logits_BKhw: Logits over the padded image.
        image_size: (H, W) before padding.
        padding: What was put around it.
        pad_logits: ``crop`` the padding, or ``stretch`` it over the image as the release does.
    """
    height, width = image_size
    if pad_logits == "stretch":
        return F.interpolate(logits_BKhw, size=(height, width), mode="bilinear", align_corners=False)
    padded = (height + padding.top + padding.bottom, width + padding.left + padding.right)
    full = F.interpolate(logits_BKhw, size=padded, mode="bilinear", align_corners=False)
    return full[..., padding.top : padding.top + height, padding.left : padding.left + width]


def cross_entropy_sum(
    logits_BKhw: Tensor, mask_BHW: Tensor, padding: Padding, pad_logits: PadLogits, class_weights_K: Tensor | None
) -> Tensor:
    """``sum over valid pixels of -w_y log softmax(logits)_y``, float32 scalar, differentiable in the logits."""

    def image_loss(logits_1Khw: Tensor, mask_1HW: Tensor) -> Tensor:
        logits_PK, label_P = _by_pixel(logits_1Khw, mask_1HW, padding, pad_logits)
        return F.cross_entropy(logits_PK, label_P, class_weights_K, ignore_index=IGNORE, reduction="sum")

    return _PerImage.apply(logits_BKhw, mask_BHW, image_loss)


def dice_sum(logits_BKhw: Tensor, mask_BHW: Tensor, padding: Padding, pad_logits: PadLogits) -> Tensor:
    """``sum over images of 1 - mean over present classes of 2 |P Y| / (|P| + |Y|)``, float32 scalar, differentiable.

    P are probabilities and Y one-hot labels over valid pixels; a class is present in an image if a pixel has its label.
    """

    def image_loss(logits_1Khw: Tensor, mask_1HW: Tensor) -> Tensor:
        logits_PK, label_P = _by_pixel(logits_1Khw, mask_1HW, padding, pad_logits)
        valid_P = label_P != IGNORE
        if not valid_P.any():
            return logits_PK.sum() * 0
        share_PK, label_P = logits_PK[valid_P].softmax(dim=1), label_P[valid_P]
        count_K = torch.bincount(label_P, minlength=share_PK.shape[1]).to(share_PK.dtype)
        hit_K = torch.zeros_like(count_K).index_add(0, label_P, share_PK.gather(1, label_P[:, None])[:, 0])
        dice_K = 2 * hit_K / (share_PK.sum(dim=0) + count_K).clamp_min(1e-6)
        present_K = count_K > 0
        return 1 - (dice_K * present_K).sum() / present_K.sum()

    return _PerImage.apply(logits_BKhw, mask_BHW, image_loss)


def _by_pixel(logits_1Khw: Tensor, mask_1HW: Tensor, padding: Padding, pad_logits: PadLogits) -> tuple[Tensor, Tensor]:
    """Enlarged logits and labels of an image's P pixels: (P, K) float32 and (P,) int64.

    Classes are innermost in memory, so the softmax reads along rows. Instead of cutting the padding off the logits,
    which copies them and their gradient, the labels are padded: ignored pixels give neither loss nor gradient.
    """
    height, width = mask_1HW.shape[-2:]
    if pad_logits == "crop":
        mask_1HW = F.pad(mask_1HW, (padding.left, padding.right, padding.top, padding.bottom), value=IGNORE)
        height, width = mask_1HW.shape[-2:]
    logits_1Khw = logits_1Khw.contiguous(memory_format=torch.channels_last)
    full_1KHW = F.interpolate(logits_1Khw, size=(height, width), mode="bilinear", align_corners=False)
    return full_1KHW.permute(0, 2, 3, 1).reshape(height * width, -1), mask_1HW.flatten().long()


class _PerImage(torch.autograd.Function):
    """Sums a loss over images in float32 and differentiates it image by image, while each is at hand."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        logits_BKhw: Tensor,
        mask_BHW: Tensor,
        image_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        total = logits_BKhw.new_zeros((), dtype=torch.float32)
        grad_BKhw = torch.zeros_like(logits_BKhw, dtype=torch.float32)
        wanted = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        for index in range(logits_BKhw.shape[0]):
            with torch.set_grad_enabled(wanted), torch.autocast(logits_BKhw.device.type, enabled=False):
                logits_1Khw = logits_BKhw[index : index + 1].detach().float().requires_grad_(wanted)
                loss = image_loss(logits_1Khw, mask_BHW[index : index + 1])
                if wanted:
                    (grad_BKhw[index : index + 1],) = torch.autograd.grad(loss, logits_1Khw)
            total += loss.detach()
        ctx.save_for_backward(grad_BKhw.to(logits_BKhw.dtype))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_BKhw * grad, None, None
