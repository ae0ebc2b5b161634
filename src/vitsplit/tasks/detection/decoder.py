"""From the fused map to losses or detections: the release's feature pyramid and Mask R-CNN.

Mask R-CNN is torchvision's, or with ``rcnn = "mmdet"`` modified as in mmdetection, see ``mmdet_form``.

Shapes: B batch, D width, P patch size in pixels, h w patch grid, H W pixels, N objects of an image, K classes, m bins
per side of a mask. Boxes are (x1, y1, x2, y2) in pixels of the padded image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.detection.mmdet_form import MmdetProposalNetwork, MmdetRoIHeads
from vitsplit.tasks.detection.pyramid import Pyramid
from vitsplit.tasks.detection.strides import ASPECT_RATIOS, ExactAnchors, exact_pool

HIDDEN = 1024
BOX_BINS, MASK_BINS = 7, 14
CANDIDATES = {"training": 2000, "testing": 1000}
"""Proposals per level before non-maximum suppression; below: per image after it; as in the release."""
PROPOSALS = {"training": 1000, "testing": 1000}
LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "classifier",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}
"""Names of the losses by torchvision's names."""


class Limits(NamedTuple):
    """Limits of a decoder's detections, see ``DetectionConfig``."""

    score_threshold: float
    nms_threshold: float
    max_detections: int

    @classmethod
    def of(cls, config: DetectionConfig) -> Limits:
        """The limits of a configuration."""
        return cls(config.score_threshold, config.nms_threshold, config.max_detections)


@dataclass(frozen=True)
class DetectionTargets:
    """Training targets.

    Attributes:
        sizes: Height and width of every image within the padded one, which has the same top left corner.
        boxes: (N, 4) float32 per image.
        labels: (N,) int64 per image, class indices from 0.
        masks: (N, H, W) uint8 per image, of the padded size; None without masks.
    """

    sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor] | None


@dataclass(frozen=True)
class Detections:
    """Detections in an image, sorted by score.

    Attributes:
        boxes_N4: float32.
        labels_N: int64, class indices from 0.
        scores_N: float32, in 0..1.
        masks_Nmm: float32, probability of the object in m x m bins over its box; None without masks.
        limits: Limits of the decoder.
    """

    boxes_N4: Tensor
    labels_N: Tensor
    scores_N: Tensor
    masks_Nmm: Tensor | None
    limits: Limits


class DetectionDecoder(nn.Module):
    """Pyramid, region proposals, and heads for class, box and mask.

    Same layers as in the release (mmdetection), except that torchvision's last layers also predict a box and a mask
    for the background, ``4 * 1025 + 257`` parameters without gradient.

    Convolutions and matrix products follow autocast; proposals, boxes and pooling are always float32, because bf16
    cannot represent the coordinates of large images.

    Args:
        width: D.
        patch_size: P.
        num_classes: K.
        masks: Mask R-CNN, otherwise Faster R-CNN.
        config: Pyramid, anchors, thresholds.
        learned_maps: False for the linear probe, whose pyramid consists of resized frozen features.
    """

    def __init__(
        self,
        width: int,
        patch_size: int,
        num_classes: int,
        config: DetectionConfig,
        *,
        masks: bool,
        learned_maps: bool = True,
    ) -> None:
        super().__init__()
        channels = config.pyramid_width
        self.patch_size = patch_size
        self.limits = Limits.of(config)
        self.pyramid = Pyramid(width, channels, norm=config.pyramid_norm, learned=learned_maps)
        self.rpn = _proposal_network(config, patch_size)
        mmdet = config.rcnn == "mmdet"
        self.roi_heads = (MmdetRoIHeads if mmdet else RoIHeads)(
            box_roi_pool=exact_pool(patch_size, BOX_BINS, aligned=mmdet),
            box_head=TwoMLPHead(channels * BOX_BINS**2, HIDDEN),
            box_predictor=_BoxPredictor(HIDDEN, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.sampled_proposals,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
        )
        if masks:
            self.roi_heads.mask_roi_pool = exact_pool(patch_size, MASK_BINS, aligned=mmdet)
            self.roi_heads.mask_head = MaskRCNNHeads(channels, (channels,) * 4, dilation=1)
            self.roi_heads.mask_predictor = _MaskPredictor(channels, channels, num_classes + 1)

    def forward(self, fused_BDhw: Tensor, targets: DetectionTargets | None = None) -> Any:
        """Losses in training, otherwise detections.

        Returns:
            In training, losses by name (``LOSSES``): scalar float32, means over the sampled proposals of the batch.
            Otherwise a list of ``Detections``, one per image.
        """
        maps = self.pyramid(fused_BDhw)
        if fused_BDhw.is_meta:
            return self._full_load(maps)
        height, width = fused_BDhw.shape[-2:]
        sizes = [(height * self.patch_size, width * self.patch_size)] * len(fused_BDhw)
        return self._detect({name: map_BChw.float() for name, map_BChw in maps.items()}, sizes, targets)

    @torch.compiler.disable  # the number of proposals is dynamic
    def _detect(
        self, maps: dict[str, Tensor], sizes: list[tuple[int, int]], targets: DetectionTargets | None
    ) -> dict[str, Tensor] | list[Detections]:
        sizes = sizes if targets is None else targets.sizes
        objects = None if targets is None else _torchvision_targets(targets)
        proposals, proposal_losses = self.rpn(ImageList(next(iter(maps.values())), sizes), maps, objects)
        found, losses = self.roi_heads(maps, proposals, sizes, objects)
        if self.training:
            return {LOSSES[name]: loss for name, loss in {**proposal_losses, **losses}.items()}
        return [
            Detections(
                result["boxes"],
                result["labels"] - 1,
                result["scores"],
                result["masks"][:, 0] if "masks" in result else None,
                self.limits,
            )
            for result in found
        ]

    def _full_load(self, maps: dict[str, Tensor]) -> Tensor:
        """Runs all layers with the maximum number of proposals and detections on the meta device, to count FLOPs."""
        first_BChw = next(iter(maps.values()))
        batch, channels = first_BChw.shape[:2]
        heads = self.roi_heads
        self.rpn.head([*maps.values()])
        pooled = first_BChw.new_empty(batch * PROPOSALS["testing"], channels, BOX_BINS, BOX_BINS)
        out = heads.box_predictor(heads.box_head(pooled))
        if heads.has_mask():
            pooled = first_BChw.new_empty(batch * heads.detections_per_img, channels, MASK_BINS, MASK_BINS)
            out = heads.mask_predictor(heads.mask_head(pooled))
        return out


def _proposal_network(config: DetectionConfig, patch_size: int) -> RegionProposalNetwork:
    mmdet = config.rcnn == "mmdet"
    return (MmdetProposalNetwork if mmdet else RegionProposalNetwork)(
        ExactAnchors(config.anchor_sizes, patch_size, rounded=not mmdet),
        _ProposalHead(config.pyramid_width, len(ASPECT_RATIOS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=CANDIDATES,
        post_nms_top_n=PROPOSALS,
        nms_thresh=0.7,
    )


def _torchvision_targets(targets: DetectionTargets) -> list[dict[str, Tensor]]:
    """Targets per image in torchvision's format, where class 0 is the background."""
    objects = [
        {"boxes": boxes_N4, "labels": labels_N + 1}
        for boxes_N4, labels_N in zip(targets.boxes, targets.labels, strict=True)
    ]
    if targets.masks is not None:
        for entry, masks_NHW in zip(objects, targets.masks, strict=True):
            entry["masks"] = masks_NHW
    return objects


class _ProposalHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [level.float() for level in logits], [level.float() for level in deltas]


class _BoxPredictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class _MaskPredictor(MaskRCNNPredictor):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()
