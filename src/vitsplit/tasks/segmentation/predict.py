"""Predicts masks for images of any size: whole or in sliding windows, at one or several scales, with optional flips.

Shapes: B batch, C channels, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from vitsplit.data.resizing import fit_size
from vitsplit.errors import ConfigError
from vitsplit.tasks.base import Forward
from vitsplit.tasks.segmentation.calibration import top_probability
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.loss import resize_logits

WINDOWS_PER_PASS = 4
SCORES_AT_ONCE = 1 << 26
"""Maximum number of scores (pixels times classes) at full resolution in memory: 256 MB."""
CACHED_SCORES = 1 << 19
"""The same on a CPU, where scores are read several times: 2 MB, within its cache."""
SMALLEST_SHARE = torch.finfo(torch.float32).tiny


def segment(
    forward: Forward, image_BCHW: Tensor, config: SegmentationConfig, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Predicts the masks of images of one size.

    Args:
        forward: Maps images (uint8) to logits and taps.
        image_BCHW: uint8, any size.
        config: Uses ``image_scale``, ``crop_size`` and the ``test_`` settings.
        temperature: T of the confidences.

    Returns:
        ``mask_BHW`` uint8 and ``confidence_BHW`` float32, the probability of the class, at the images' size. With
        several views, T applies to the logarithm of their mean probabilities.
    """
    masks, confidences = [], []
    for _, scores_BKRW in _scores(forward, image_BCHW, config):
        top_B1RW, class_B1RW = scores_BKRW.max(1, keepdim=True)
        masks.append(class_B1RW[:, 0].to(torch.uint8))
        confidences.append(top_probability(scores_BKRW, top_B1RW, temperature))
    return torch.cat(masks, dim=1), torch.cat(confidences, dim=1)


def segment_with_scores(
    forward: Forward, image_BCHW: Tensor, config: SegmentationConfig, pixels: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Predicts masks, and returns the scores of some pixels.

    Args:
        forward: See ``segment``.
        image_BCHW: See ``segment``.
        config: See ``segment``.
        pixels: Flat indices of each image's pixels, int64, increasing, on the CPU.

    Returns:
        ``mask_BHW`` uint8, and for each image ``scores_PK``, float32 on the CPU: logits, or logarithms of the mean
        probabilities of several views.
    """
    width = image_BCHW.shape[-1]
    masks: list[Tensor] = []
    found: list[list[Tensor]] = [[] for _ in pixels]
    for rows, scores_BKRW in _scores(forward, image_BCHW, config):
        masks.append(scores_BKRW.max(1).indices.to(torch.uint8))
        for parts, scores_KRW, place_P in zip(found, scores_BKRW, pixels, strict=True):
            begin, end = torch.searchsorted(place_P, torch.tensor([rows.start * width, rows.stop * width])).tolist()
            here_P = (place_P[begin:end] - rows.start * width).to(scores_KRW.device)
            parts.append(scores_KRW[:, here_P // width, here_P % width].T.cpu())
    return torch.cat(masks, dim=1), [torch.cat(parts) for parts in found]


def class_shares(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig) -> Tensor:
    """Class probabilities, ``(B, K, H, W)`` float32; arguments as for ``segment``."""
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    return _mean_shares(list(_views(forward, image_BCHW, config)), size, range(size[0]))


def _views(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig) -> Iterator[Tensor]:
    """Logits at every scale and flip, at the size of that view."""
    base_size = fit_size((image_BCHW.shape[-2], image_BCHW.shape[-1]), config.image_scale)
    for scale in config.test_scales:
        view_size = [max(1, round(side * scale)) for side in base_size]
        view_BCHW = TF.resize(image_BCHW, view_size, antialias=True)
        yield _view_logits(forward, view_BCHW, config)
        if config.test_flip:
            yield _view_logits(forward, view_BCHW.flip(-1), config).flip(-1)


def _scores(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig) -> Iterator[tuple[range, Tensor]]:
    """Blocks of rows with their scores, ``(B, K, len(rows), W)`` float32, see ``segment_with_scores``."""
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    views = list(_views(forward, image_BCHW, config))
    for rows in _row_ranges(size, views[0]):
        if len(views) == 1:
            yield rows, resize_rows(views[0], size, rows)
        else:
            yield rows, _mean_shares(views, size, rows).clamp_min_(SMALLEST_SHARE).log_()


def _mean_shares(views: Sequence[Tensor], size: tuple[int, int], rows: range) -> Tensor:
    """Class probabilities averaged over views, on some rows of the image: ``(B, K, len(rows), W)``."""
    total_BKRW = resize_rows(views[0], size, rows).softmax(1)
    for logits_BKhw in views[1:]:
        total_BKRW += resize_rows(logits_BKhw, size, rows).softmax(1)
    return total_BKRW / len(views)


def _row_ranges(size: tuple[int, int], view_BKhw: Tensor) -> Iterator[range]:
    """Blocks of rows with at most ``SCORES_AT_ONCE`` or ``CACHED_SCORES`` scores of all images and classes."""
    most = CACHED_SCORES if view_BKhw.device.type == "cpu" else SCORES_AT_ONCE
    step = max(1, most // (view_BKhw.shape[:2].numel() * size[1]))
    for start in range(0, size[0], step):
        yield range(start, min(start + step, size[0]))


def resize_rows(map_BKhw: Tensor, size: tuple[int, int], rows: range) -> Tensor:
    """Some rows of a map resized bilinearly to ``size``: ``(B, K, len(rows), W)``.

    Equals ``F.interpolate(map_BKhw, size)[:, :, rows]`` without computing the other rows.
    """
    height = map_BKhw.shape[-2]
    y_R = torch.arange(rows.start, rows.stop, device=map_BKhw.device)
    y_R = ((y_R + 0.5) * (height / size[0]) - 0.5).clamp_min(0)
    above_R = y_R.long().clamp_max(height - 1)
    below_R = (above_R + 1).clamp_max(height - 1)
    part_R1 = (y_R - above_R).to(map_BKhw.dtype)[:, None]
    strip_BKRw = torch.lerp(map_BKhw[:, :, above_R], map_BKhw[:, :, below_R], part_R1)
    return F.interpolate(strip_BKRw, size=(len(rows), size[1]), mode="bilinear", align_corners=False)


def _view_logits(forward: Forward, view_BCHW: Tensor, config: SegmentationConfig) -> Tensor:
    """(B, K, H, W) float32 at the view's size; overlapping windows are averaged."""
    batch, _, height, width = view_BCHW.shape
    if config.test_mode == "whole":
        return _window_logits(forward, view_BCHW, config)
    stride = config.test_stride or (max(1, config.crop_size[0] * 2 // 3), max(1, config.crop_size[1] * 2 // 3))
    boxes = list(windows((height, width), config.crop_size, stride))
    if len(boxes) == 1:
        return _window_logits(forward, view_BCHW, config)
    total_BKHW: Tensor | None = None
    count_HW = torch.zeros(height, width)
    per_pass = max(1, WINDOWS_PER_PASS // batch)
    for start in range(0, len(boxes), per_pass):
        chunk = boxes[start : start + per_pass]
        parts = [view_BCHW[..., top:bottom, left:right] for top, left, bottom, right in chunk]
        for logits_BKHW, (top, left, bottom, right) in zip(
            _window_logits(forward, torch.cat(parts), config).split(batch), chunk, strict=True
        ):
            if total_BKHW is None:
                total_BKHW = logits_BKHW.new_zeros(*logits_BKHW.shape[:2], height, width)
            total_BKHW[..., top:bottom, left:right] += logits_BKHW
            count_HW[top:bottom, left:right] += 1
    assert total_BKHW is not None
    return total_BKHW / count_HW.to(total_BKHW.device)


def _window_logits(forward: Forward, image_BCHW: Tensor, config: SegmentationConfig) -> Tensor:
    logits_BKhw, taps = forward(image_BCHW)
    return resize_logits(logits_BKhw.float(), taps.image_size, taps.padding, config.pad_logits)


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) that cover ``size``; the last of a row or column is shifted inwards, not shrunk.

    Raises:
        ConfigError: The stride is larger than the window, so that windows would skip pixels.
    """
    for side, length, step in zip(size, window, stride, strict=True):
        # Two windows, one at each end, may still cover the side.
        if step > length and side > 2 * length:
            raise ConfigError(
                f"test_stride {stride} skips pixels between windows of crop_size {window}: "
                "reduce it to at most the crop size, or omit it."
            )
    for top in _starts(size[0], window[0], stride[0]):
        for left in _starts(size[1], window[1], stride[1]):
            yield top, left, min(top + window[0], size[0]), min(left + window[1], size[1])


def _starts(length: int, window: int, stride: int) -> list[int]:
    steps = max(0, -(-(length - window) // stride))
    return [max(0, min(step * stride, length - window)) for step in range(steps + 1)]
