"""Mask R-CNN as in mmdetection 2.22 (used by the release), where it differs from torchvision; ``--rcnn mmdet``.

- Box losses are L1 (torchvision: smooth L1 with beta 1/9), summed over positive samples and divided by the number of
  all samples.
- The boxes that overlap an object most are matched to it even below the threshold (torchvision: a box is matched to
  the object it overlaps most), from an IoU of 0.3 for anchors (torchvision: any) and 0.5 for proposals (torchvision:
  never).
- Mask targets are cropped with RoIAlign's half-pixel shift and are binary (torchvision: unshifted and fractional).

Pooling and anchors are in ``strides``.

Shapes: N boxes or samples, G objects of an image, K classes, m bins a side of a mask. Boxes are (x1, y1, x2, y2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import roi_align

LEAST_ANCHOR_OVERLAP, LEAST_PROPOSAL_OVERLAP = 0.3, 0.5


class BestBoxMatcher(Matcher):
    """Matches every object to the boxes that overlap it most, if by at least ``least``; the last object wins.

    Args:
        high: Boxes with at least this IoU are matched to an object.
        low: Boxes with lower IoU are background.
        least: Minimum IoU of an object's best boxes.
    """

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Updates ``matches`` (N, object index or negative) in place, from the IoU matrix (G, N)."""
        best_G1 = match_quality_matrix.amax(1, keepdim=True)
        is_own_GN = (match_quality_matrix == best_G1) & (best_G1 >= self.least)
        number_G1 = torch.arange(1, len(best_G1) + 1, device=matches.device)[:, None]
        last_N = (is_own_GN * number_G1).amax(0)
        matches[last_N > 0] = last_N[last_N > 0] - 1


class MmdetProposalNetwork(RegionProposalNetwork):
    """torchvision's region proposal network with mmdet's matching and loss."""

    def __init__(self, *arguments: Any, fg_iou_thresh: float, bg_iou_thresh: float, **options: Any) -> None:
        super().__init__(*arguments, fg_iou_thresh=fg_iou_thresh, bg_iou_thresh=bg_iou_thresh, **options)
        self.proposal_matcher = BestBoxMatcher(fg_iou_thresh, bg_iou_thresh, LEAST_ANCHOR_OVERLAP)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box losses of the sampled anchors, divided by their number."""
        positive, negative = (torch.cat(each).bool() for each in self.fg_bg_sampler(labels))
        sampled = positive | negative
        label_N, target_N4 = torch.cat(labels), torch.cat(regression_targets)
        box_loss = F.l1_loss(pred_bbox_deltas[positive], target_N4[positive], reduction="sum") / sampled.sum()
        return F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], label_N[sampled]), box_loss


class MmdetRoIHeads(RoIHeads):
    """torchvision's RoI heads with mmdet's matching and losses."""

    def __init__(self, *, fg_iou_thresh: float, bg_iou_thresh: float, **options: Any) -> None:
        super().__init__(fg_iou_thresh=fg_iou_thresh, bg_iou_thresh=bg_iou_thresh, **options)
        self.proposal_matcher = BestBoxMatcher(fg_iou_thresh, bg_iou_thresh, LEAST_PROPOSAL_OVERLAP)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As in torchvision: losses in training, otherwise detections."""
        if not self.training:
            found: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
            found = super().forward(features, proposals, image_shapes)
            return found
        assert targets is not None, "training needs targets"
        boxes, objects, labels, box_targets = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, boxes, image_shapes))
        logits_NK, deltas_NK4 = self.box_predictor(pooled)
        label_N, target_N4 = torch.cat(labels), torch.cat(box_targets)
        losses = {
            "loss_classifier": F.cross_entropy(logits_NK, label_N),
            "loss_box_reg": box_loss(deltas_NK4, label_N, target_N4),
        }
        if self.has_mask():
            positive = [each > 0 for each in labels]
            boxes, objects, labels = (_select(each, positive) for each in (boxes, objects, labels))
            logits_NKmm = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
            masks = [target["masks"] for target in targets]
            bins = logits_NKmm.shape[-1]
            cut = [mask_targets(*each, bins) for each in zip(masks, boxes, objects, strict=True)]
            losses["loss_mask"] = mask_loss(logits_NKmm, torch.cat(labels), torch.cat(cut))
        return [], losses


def box_loss(deltas_NK4: Tensor, label_N: Tensor, target_N4: Tensor) -> Tensor:
    """L1 loss of the boxes of the target classes, summed over positive samples and divided by all samples."""
    positive_N = label_N > 0
    own_N4 = deltas_NK4.unflatten(1, (-1, 4))[positive_N, label_N[positive_N]]
    return F.l1_loss(own_N4, target_N4[positive_N], reduction="sum") / len(label_N)


def mask_loss(logits_NKmm: Tensor, label_N: Tensor, target_Nmm: Tensor) -> Tensor:
    """Mean binary cross-entropy of the masks of the target classes; 0 without samples."""
    if not len(label_N):
        return logits_NKmm.sum() * 0
    own_Nmm = logits_NKmm[torch.arange(len(label_N), device=label_N.device), label_N]
    return F.binary_cross_entropy_with_logits(own_Nmm, target_Nmm)


def mask_targets(masks_GHW: Tensor, boxes_N4: Tensor, object_N: Tensor, bins: int) -> Tensor:
    """Crops each box of its object's mask to m x m bins, (N, m, m) float32: 1 where half of a bin is covered."""
    rois_N5 = torch.cat([object_N[:, None].to(boxes_N4), boxes_N4], 1)
    share_N1mm = roi_align(masks_GHW[:, None].to(boxes_N4), rois_N5, bins, sampling_ratio=0, aligned=True)
    return (share_N1mm[:, 0] >= 0.5).float()


def _select(values: Sequence[Tensor], which: Sequence[Tensor]) -> list[Tensor]:
    return [each[chosen] for each, chosen in zip(values, which, strict=True)]
