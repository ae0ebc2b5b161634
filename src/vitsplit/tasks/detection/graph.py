"""Detection as operators of a graph: torchvision's inference for one image, without branches on sizes or counts.

torchvision chooses between two forms of non-maximum suppression by the number of boxes, and loops over levels that have
boxes. Here every level is pooled, possibly of no box, and boxes of different classes or levels are moved apart before
one suppression.

Shapes: D width, C channels, P patch size, h w patch grid, A anchors or candidates, N boxes, K classes, b bins per side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import nms, roi_align

from vitsplit.tasks.detection.decoder import CANDIDATES, PROPOSALS, DetectionDecoder, Detections
from vitsplit.tasks.detection.strides import AlignedPool
from vitsplit.types import LayerTaps

LEAST_PROPOSAL, LEAST_OBJECT = 1e-3, 1e-2
"""Minimum side in pixels of a proposal and of an object, as in torchvision."""


class GraphDetector(nn.Module):
    """The inference of a ``DetectionDecoder`` on one image.

    Args:
        decoder: The decoder, whose layers and limits are used.
    """

    def __init__(self, decoder: DetectionDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, fused_1Dhw: Tensor) -> list[Detections]:
        """``fused_1Dhw`` to the detections of ``DetectionDecoder.forward``."""
        decoder = self.decoder
        patch = decoder.patch_size
        maps = [map_1Chw.float() for map_1Chw in decoder.pyramid(fused_1Dhw).values()]
        limit_4 = torch.stack(
            [torch.full((), side * patch, dtype=torch.float32) for side in fused_1Dhw.shape[:1:-1]] * 2
        )
        proposals_N4 = self._propose(maps, limit_4)
        heads = decoder.roi_heads
        logits_NK, deltas_N4K = heads.box_predictor(heads.box_head(self._pool(heads.box_roi_pool, maps, proposals_N4)))
        boxes_NK4 = heads.box_coder.decode_single(deltas_N4K, proposals_N4).unflatten(1, (-1, 4))
        # Without the background, which is the first class.
        scores_A = logits_NK.softmax(-1)[:, 1:].flatten()
        boxes_A4 = _clip(boxes_NK4[:, 1:].flatten(0, 1), limit_4)
        labels_A = torch.arange(logits_NK.shape[1] - 1).expand(logits_NK.shape[0], -1).flatten()
        kept = _large(boxes_A4, LEAST_OBJECT) & (scores_A > heads.score_thresh)
        boxes_A4, scores_A, labels_A = boxes_A4[kept], scores_A[kept], labels_A[kept]
        kept = _suppress(boxes_A4, scores_A, labels_A, heads.nms_thresh, limit_4, heads.detections_per_img)
        boxes_N4, scores_N, labels_N = boxes_A4[kept], scores_A[kept], labels_A[kept]
        masks_Nbb = None
        if heads.has_mask():
            pooled = self._pool(heads.mask_roi_pool, maps, boxes_N4)
            masks_NKbb = heads.mask_predictor(heads.mask_head(pooled))[:, 1:]
            place_N1bb = labels_N[:, None, None, None].expand(-1, 1, *masks_NKbb.shape[2:])
            masks_Nbb = masks_NKbb.gather(1, place_N1bb)[:, 0].sigmoid()
        return [Detections(boxes_N4, labels_N, scores_N, masks_Nbb, decoder.limits)]

    def _propose(self, maps: list[Tensor], limit_4: Tensor) -> Tensor:
        """Boxes that may hold an object, ``(N, 4)``, the most probable first."""
        rpn: Any = self.decoder.rpn
        boxes, scores, levels = [], [], []
        for level, (logits, deltas) in enumerate(zip(*rpn.head(maps), strict=True)):
            logits_A1, deltas_A4 = concat_box_prediction_layers([logits], [deltas])
            count = torch.sym_min(logits_A1.shape[0], CANDIDATES["testing"])
            scores_A, place_A = logits_A1[:, 0].topk(count)
            anchors_A4 = self._anchors(level, logits.shape[2], logits.shape[3])
            boxes.append(rpn.box_coder.decode_single(deltas_A4[place_A], anchors_A4[place_A]))
            scores.append(scores_A.sigmoid())
            levels.append(torch.full_like(place_A, level))
        boxes_A4, scores_A, levels_A = _clip(torch.cat(boxes), limit_4), torch.cat(scores), torch.cat(levels)
        kept = _large(boxes_A4, LEAST_PROPOSAL)
        boxes_A4, scores_A, levels_A = boxes_A4[kept], scores_A[kept], levels_A[kept]
        return boxes_A4[_suppress(boxes_A4, scores_A, levels_A, rpn.nms_thresh, limit_4, PROPOSALS["testing"])]

    def _anchors(self, level: int, height: int, width: int) -> Tensor:
        """The anchors of a level, ``(A, 4)``, as ``ExactAnchors``."""
        anchors: Any = self.decoder.rpn.anchor_generator
        stride = anchors.strides[level]
        y_h1, x_w = torch.arange(height)[:, None] * stride, torch.arange(width) * stride
        corner_hw2 = torch.stack([x_w.expand(height, -1), y_h1.expand(-1, width)], dim=-1).float()
        return (corner_hw2.repeat(1, 1, 2).view(-1, 1, 4) + anchors.cell_anchors[level].float()).view(-1, 4)

    def _pool(self, pool: Any, maps: list[Tensor], boxes_N4: Tensor) -> Tensor:
        """As ``MultiScaleRoIAlign``, (N, C, b, b): every box from the level of its size."""
        levels_N = pool.map_levels([boxes_N4])
        rois_N5 = torch.cat([torch.zeros_like(boxes_N4[:, :1]), boxes_N4], dim=1)
        aligned = isinstance(pool, AlignedPool)
        pooled, places = [], []
        for level, (map_1Chw, scale) in enumerate(zip(maps, pool.scales, strict=False)):
            place = (levels_N == level).nonzero()[:, 0]
            places.append(place)
            rois = rois_N5[place]
            pooled.append(roi_align(map_1Chw, rois, pool.output_size, scale, pool.sampling_ratio, aligned))
        return torch.cat(pooled)[torch.cat(places).argsort()]


def _clip(boxes_N4: Tensor, limit_4: Tensor) -> Tensor:
    return torch.minimum(boxes_N4.clamp(min=0), limit_4)


def _large(boxes_N4: Tensor, least: float) -> Tensor:
    return (boxes_N4[:, 2:] - boxes_N4[:, :2] >= least).all(1)


def _suppress(
    boxes_N4: Tensor, scores_N: Tensor, groups_N: Tensor, threshold: float, limit_4: Tensor, most: int
) -> Tensor:
    """Indices of the boxes that remain within each group, by decreasing score, and at most ``most``."""
    apart_N1 = groups_N[:, None] * (limit_4.max() + 1)
    kept_N = nms(boxes_N4 + apart_N1, scores_N, threshold)
    return kept_N.narrow(0, 0, torch.sym_min(kept_N.shape[0], most))  # PyTorch 2.8 does not export [:most]


def on_input(found: Detections, taps: LayerTaps) -> dict[str, Tensor]:
    """Detections in pixels of the unpadded image, clipped to it, without those that are entirely in the padding.

    Returns:
        ``boxes`` (N, 4) and ``scores`` (N,) float32, ``labels`` (N,) int64, ``masks`` (N, b, b) float32 if there are.
    """
    left, top, height, width = (
        torch.full((), side, dtype=torch.float32) for side in (taps.padding.left, taps.padding.top, *taps.image_size)
    )
    boxes_N4 = found.boxes_N4 - torch.stack([left, top, left, top])
    boxes_N4 = _clip(boxes_N4, torch.stack([width, height, width, height]))
    inside = (boxes_N4[:, 2:] > boxes_N4[:, :2]).all(1)
    outputs = {"boxes": boxes_N4, "scores": found.scores_N, "labels": found.labels_N}
    if found.masks_Nmm is not None:
        outputs["masks"] = found.masks_Nmm
    return {name: value[inside] for name, value in outputs.items()}
