"""Losses of semantic segmentation, as sums over valid pixels, one image at a time.

Logits come at a quarter of the patch size; the loss is taken at the labels' resolution. At 150 classes and 512 pixels
an enlarged image of float32 logits is 157 MB, of which autograd would keep several. Here each image's logits are
enlarged, scored, differentiated and forgotten before the next: what stays is the gradient at the logits' own size.

The cross-entropy, which every step takes, goes further: bilinear enlarging is a product with a matrix along each side,
and the gradient of the softmax is known, so that on a processor a few rows of pixels at a time are enlarged, scored and
folded back while they are in its cache.

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
"""Rows of pixels whose logits stay in a processor's cache: 2.4 MB at 150 classes and 512 pixels."""
ROWS_OF_A_STRIP = 64
"""Rows of pixels whose logits are enlarged to the image's width together: a strip's 20 rows are 6 MB then, where all of
an image would be 46. Neighbouring strips share a row or two, which are enlarged for both."""


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

    if pad_logits == "crop":
        mask_BHW = F.pad(mask_BHW, (padding.left, padding.right, padding.top, padding.bottom), value=IGNORE)
    weights_K = None if class_weights_K is None else class_weights_K.float()
    return _CrossEntropy.apply(logits_BKhw, mask_BHW, weights_K)


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


class _CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropy over valid pixels and its gradient, image by image, in float32."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits_BKhw: Tensor, mask_BHW: Tensor, weights_K: Tensor | None
    ) -> Tensor:
        device, (height, width) = logits_BKhw.device, logits_BKhw.shape[-2:]
        enlarge_Hh = _enlarging(height, mask_BHW.shape[1], device)
        enlarge_Ww = _enlarging(width, mask_BHW.shape[2], device)
        grad_BhwK = logits_BKhw.new_empty((len(logits_BKhw), height, width, logits_BKhw.shape[1]))
        total = torch.zeros((), dtype=torch.float32, device=device)
        with torch.autocast(device.type, enabled=False):
            for index, mask_HW in enumerate(mask_BHW):
                logits_hwK = logits_BKhw[index].permute(1, 2, 0).float()
                grad_hwK = torch.zeros_like(logits_hwK)
                for label_RW, enlarge_Rr, used in _strips(mask_HW.long(), enlarge_Hh, ROWS_OF_A_STRIP):
                    wide_rWK = enlarge_Ww @ logits_hwK[used]
                    loss, grad_rWK = _score_rows(wide_rWK, label_RW, enlarge_Rr, weights_K)
                    total += loss
                    grad_hwK[used] += enlarge_Ww.T @ grad_rWK
                grad_BhwK[index] = grad_hwK
        ctx.save_for_backward(grad_BhwK.permute(0, 3, 1, 2))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_BKhw * grad, None, None


def _enlarging(few: int, many: int, device: torch.device) -> Tensor:
    """The matrix (many, few) that enlarges a line bilinearly, pixel centres half a pixel in."""
    lines_1ff = torch.eye(few, device=device)[None]
    return F.interpolate(lines_1ff, size=many, mode="linear", align_corners=False)[0].T.contiguous()


def _strips(label_HW: Tensor, enlarge_Hh: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """So many rows of pixels at a time: their labels, what enlarges the rows of logits between which they lie,
    and which these are. All at once on a GPU, which would have to be waited for to see where a strip lies.
    """
    if label_HW.device.type != "cpu":
        yield label_HW, enlarge_Hh, slice(None)
        return
    for label_RW, enlarge_Rh in zip(label_HW.split(rows), enlarge_Hh.split(rows), strict=True):
        touched = enlarge_Rh.any(0).nonzero()
        used = slice(int(touched[0]), int(touched[-1]) + 1)
        yield label_RW, enlarge_Rh[:, used], used


def _score_rows(
    wide_hWK: Tensor, label_HW: Tensor, enlarge_Hh: Tensor, weights_K: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient in ``wide_hWK``, over logits of which only the rows are still to be enlarged."""
    loss = wide_hWK.new_zeros(())
    grad_hWK = torch.zeros_like(wide_hWK)
    num_classes = wide_hWK.shape[-1]
    for label_RW, enlarge_Rr, used in _strips(label_HW, enlarge_Hh, ROWS_AT_A_TIME):
        logits_PK = (enlarge_Rr @ wide_hWK[used].flatten(1)).view(-1, num_classes)
        label_P = label_RW.flatten()
        valid_P = label_P != IGNORE
        place_P1 = label_P.where(valid_P, 0)[:, None]
        weight_P1 = valid_P[:, None].float() if weights_K is None else weights_K[place_P1] * valid_P[:, None]
        log_share_PK = logits_PK.log_softmax(1)
        loss -= (log_share_PK.gather(1, place_P1) * weight_P1).sum()
        grad_PK = log_share_PK.exp_()
        grad_PK.scatter_add_(1, place_P1, torch.full_like(weight_P1, -1.0))
        grad_PK *= weight_P1
        grad_hWK[used].flatten(1).addmm_(enlarge_Rr.T, grad_PK.view(len(label_RW), -1))
    return loss, grad_hWK


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
        # In float16 the gradient of a mean over many pixels is zero until the loss is scaled, which it is not yet.
        dtype = torch.float32 if logits_BKhw.dtype == torch.float16 else logits_BKhw.dtype
        ctx.save_for_backward(grad_BKhw.to(dtype))
        return total

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        (grad_BKhw,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_BKhw * grad, None, None
