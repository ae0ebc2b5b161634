"""Losses of semantic segmentation, as sums over valid pixels, computed image by image.

Logits have a stride of a quarter patch; the loss is computed at the labels' resolution. With 150 classes and 512
pixels, the upsampled float32 logits of one image take 157 MB, and autograd would store several copies. Here the logits
of each image are upsampled, scored and differentiated before the next; only the gradient at the original resolution is
stored.

The cross-entropy is further optimized: bilinear upsampling is a matrix product along each axis, and the softmax
gradient is analytic, so on a CPU a few rows of pixels at a time are upsampled, scored and folded back within the cache.

Shapes: B batch, K classes, h w grid of the logits, H W pixels, R rows of pixels, P pixels in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.types import Padding

PadLogits = Literal["crop", "stretch"]
ROWS_AT_A_TIME = 8
"""Rows of pixels whose logits fit in a CPU cache: 2.4 MB at 150 classes and 512 pixels."""
ROWS_OF_A_STRIP = 64
"""Rows of pixels whose logits are upsampled to the image's width together: 6 MB instead of 46 MB per image."""


def resize_logits(
    logits_BKhw: Tensor, image_size: tuple[int, int], padding: Padding, pad_logits: PadLogits = "crop"
) -> Tensor:
    """Upsamples logits of the padded image to the image, bilinearly: (B, K, h, w) to (B, K, H, W).

    Args:
        logits_BKhw: Logits of the padded image.
        image_size: (H, W) before padding.
        padding: Padding of the image.
        pad_logits: ``crop`` the padding, or ``stretch`` the padded map over the image as in the release.
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

    if pad_logits == "crop":
        mask_BHW = F.pad(mask_BHW, (padding.left, padding.right, padding.top, padding.bottom), value=IGNORE)
    weights_K = None if class_weights_K is None else class_weights_K.float()
    return _CrossEntropy.apply(logits_BKhw, mask_BHW, weights_K)


def dice_sum(logits_BKhw: Tensor, mask_BHW: Tensor, padding: Padding, pad_logits: PadLogits) -> Tensor:
    """``sum over images of 1 - mean over present classes of 2 |P Y| / (|P| + |Y|)``, float32 scalar, differentiable.

    P are probabilities and Y one-hot labels of valid pixels; a class is present if a pixel of the image has its label.
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
    """Upsampled logits and labels of an image's P pixels: (P, K) float32 and (P,) int64.

    Channels-last, so the softmax reads contiguous memory. Instead of cropping the logits, which would copy them and
    their gradient, the labels are padded with ``IGNORE``.
    """
    height, width = mask_1HW.shape[-2:]
    if pad_logits == "crop":
        mask_1HW = F.pad(mask_1HW, (padding.left, padding.right, padding.top, padding.bottom), value=IGNORE)
        height, width = mask_1HW.shape[-2:]
    logits_1Khw = logits_1Khw.contiguous(memory_format=torch.channels_last)
    full_1KHW = F.interpolate(logits_1Khw, size=(height, width), mode="bilinear", align_corners=False)
    return full_1KHW.permute(0, 2, 3, 1).reshape(height * width, -1), mask_1HW.flatten().long()


class _CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropy over valid pixels and its gradient, image by image, in float32."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits_BKhw: Tensor, mask_BHW: Tensor, weights_K: Tensor | None
    ) -> Tensor:
        device, (height, width) = logits_BKhw.device, logits_BKhw.shape[-2:]
        upsample_Hh = _upsampling_matrix(height, mask_BHW.shape[1], device)
        upsample_Ww = _upsampling_matrix(width, mask_BHW.shape[2], device)
        grad_BhwK = logits_BKhw.new_empty((len(logits_BKhw), height, width, logits_BKhw.shape[1]))
        total = torch.zeros((), dtype=torch.float32, device=device)
        with torch.autocast(device.type, enabled=False):
            for index, mask_HW in enumerate(mask_BHW):
                logits_hwK = logits_BKhw[index].permute(1, 2, 0).float()
                grad_hwK = torch.zeros_like(logits_hwK)
                for label_RW, upsample_Rr, used in _strips(mask_HW.long(), upsample_Hh, ROWS_OF_A_STRIP):
                    wide_rWK = upsample_Ww @ logits_hwK[used]
                    loss, grad_rWK = _score_rows(wide_rWK, label_RW, upsample_Rr, weights_K)
                    total += loss
                    grad_hwK[used] += upsample_Ww.T @ grad_rWK
                grad_BhwK[index] = grad_hwK
        ctx.save_for_backward(grad_BhwK.permute(0, 3, 1, 2))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_BKhw * grad, None, None


def _upsampling_matrix(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """The matrix (size_out, size_in) of bilinear upsampling along one axis (``align_corners=False``)."""
    identity_1ii = torch.eye(size_in, device=device)[None]
    return F.interpolate(identity_1ii, size=size_out, mode="linear", align_corners=False)[0].T.contiguous()


def _strips(label_HW: Tensor, upsample_Hh: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yields blocks of rows: labels, the upsampling matrix, and the rows of logits it uses; a single block on a GPU,
    to avoid synchronization.
    """
    if label_HW.device.type != "cpu":
        yield label_HW, upsample_Hh, slice(None)
        return
    for label_RW, upsample_Rh in zip(label_HW.split(rows), upsample_Hh.split(rows), strict=True):
        touched = upsample_Rh.any(0).nonzero()
        used = slice(int(touched[0]), int(touched[-1]) + 1)
        yield label_RW, upsample_Rh[:, used], used


def _score_rows(
    wide_hWK: Tensor, label_HW: Tensor, upsample_Hh: Tensor, weights_K: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of logits that are already upsampled along the width."""
    loss = wide_hWK.new_zeros(())
    grad_hWK = torch.zeros_like(wide_hWK)
    num_classes = wide_hWK.shape[-1]
    for label_RW, upsample_Rr, used in _strips(label_HW, upsample_Hh, ROWS_AT_A_TIME):
        logits_PK = (upsample_Rr @ wide_hWK[used].flatten(1)).view(-1, num_classes)
        label_P = label_RW.flatten()
        valid_P = label_P != IGNORE
        place_P1 = label_P.where(valid_P, 0)[:, None]
        weight_P1 = valid_P[:, None].float() if weights_K is None else weights_K[place_P1] * valid_P[:, None]
        log_share_PK = logits_PK.log_softmax(1)
        loss -= (log_share_PK.gather(1, place_P1) * weight_P1).sum()
        grad_PK = log_share_PK.exp_()
        grad_PK.scatter_add_(1, place_P1, torch.full_like(weight_P1, -1.0))
        grad_PK *= weight_P1
        grad_hWK[used].flatten(1).addmm_(upsample_Rr.T, grad_PK.view(len(label_RW), -1))
    return loss, grad_hWK


class _PerImage(torch.autograd.Function):
    """Sums a loss over images in float32, computing the gradient image by image in the forward pass."""

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
        # Float16 gradients of a mean over many pixels underflow before loss scaling.
        dtype = torch.float32 if logits_BKhw.dtype == torch.float16 else logits_BKhw.dtype
        ctx.save_for_backward(grad_BKhw.to(dtype))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_BKhw * grad, None, None
