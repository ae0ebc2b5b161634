"""The release's detector stated again in plain PyTorch: mmdetection's Mask R-CNN on the pyramid of ``SplitBackbone``.

Images have sides that are multiples of 32, so that nothing is padded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from release_models import OTHERS, WIDTH, Dino, SplitBackbone, normalized, upsampling
from torch import nn
from torchvision.ops import batched_nms, roi_align

CHANNELS, CLASSES = 16, ("ball", "box", "cone")
STRIDES, RATIOS, SCALE = (4, 8, 16, 32, 64), (0.5, 1.0, 2.0), 2
SETTINGS = f"""{OTHERS.replace("{", "{{").replace("}", "}}")}
model = dict(type='MaskRCNN',
    backbone=dict({{backbone}}),
    rpn_head=dict(type='RPNHead', anchor_generator=dict(scales=[{SCALE}], ratios=[0.5, 1.0, 2.0], strides={[*STRIDES]}),
        bbox_coder=dict(target_stds=[1.0, 1.0, 1.0, 1.0])),
    roi_head=dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2]))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=dict(score_thr=0.3, nms=dict(type='nms', iou_threshold=0.4), max_per_img=2000)))
data = dict(test=dict(pipeline=[dict(type='MultiScaleFlipAug', img_scale=(128, 96), flip=False,
    transforms=[dict(type='Resize', keep_ratio=True), dict(type='Collect', keys=['img'])])]))
"""


def resampled(dino):
    """The frozen model at patch 16 as in the release's detection code: 25 positions become 16 along the raster."""
    other = Dino(patch_size=16, side=4)
    state = dino.state_dict()
    state["patch_embed.proj.weight"] = F.interpolate(state["patch_embed.proj.weight"], size=(16, 16), mode="bilinear")
    positions = F.interpolate(state["pos_embed"][:, 1:].mT, size=16, mode="linear").mT
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], positions], 1)
    other.load_state_dict(state)
    return other


class Wrapped(nn.Module):
    """mmcv's ConvModule without norm."""

    def __init__(self, *arguments, **options):
        super().__init__()
        self.conv = nn.Conv2d(*arguments, **options)

    def forward(self, x):
        return self.conv(x)


class PyramidBackbone(SplitBackbone):
    def __init__(self, dino, **options):
        super().__init__(dino, fusion="fusion_net", dead_norm=False, **options)
        self.up1, self.up2 = upsampling((WIDTH,) * 3), upsampling((WIDTH,) * 3)[:3]
        for level in range(1, 5):
            setattr(self, f"norm{level}", nn.BatchNorm2d(WIDTH))

    def forward(self, x):
        x = super().forward(x)
        maps = (self.up1(x), self.up2(x), x, F.max_pool2d(x, 2))
        return [getattr(self, f"norm{level}")(each) for level, each in enumerate(maps, 1)]


class Fpn(nn.Module):
    def __init__(self):
        super().__init__()
        self.lateral_convs = nn.ModuleList(Wrapped(WIDTH, CHANNELS, 1) for _ in range(4))
        self.fpn_convs = nn.ModuleList(Wrapped(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4))

    def forward(self, maps):
        maps = [conv(each) for conv, each in zip(self.lateral_convs, maps, strict=True)]
        for level in (2, 1, 0):
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=maps[level].shape[2:])
        maps = [conv(each) for conv, each in zip(self.fpn_convs, maps, strict=True)]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]


class Rpn(nn.Module):
    def __init__(self):
        super().__init__()
        self.rpn_conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.rpn_cls, self.rpn_reg = nn.Conv2d(CHANNELS, 3, 1), nn.Conv2d(CHANNELS, 12, 1)

    def forward(self, maps, size):
        boxes, scores, levels = [], [], []
        for level, (map_1Chw, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            hidden = F.relu(self.rpn_conv(map_1Chw))
            score_A = self.rpn_cls(hidden)[0].permute(1, 2, 0).flatten().sigmoid()
            delta_A4 = self.rpn_reg(hidden)[0].permute(1, 2, 0).reshape(-1, 4)
            best = score_A.topk(min(1000, len(score_A))).indices
            boxes.append(moved(anchors(map_1Chw.shape[2:], stride)[best], delta_A4[best], size))
            scores.append(score_A[best])
            levels.append(torch.full_like(best, level))
        boxes, scores, levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        valid = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, levels = boxes[valid], scores[valid], levels[valid]
        return boxes[batched_nms(boxes, scores, levels, 0.7)[:1000]]


def anchors(grid, stride):
    """Centers at the corners of cells; of every cell the ratios of height to width in order."""
    sides = [(SCALE * stride / math.sqrt(ratio), SCALE * stride * math.sqrt(ratio)) for ratio in RATIOS]
    base_34 = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides], dtype=torch.float64)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) * stride for n in grid), indexing="ij")
    return (torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) + base_34).reshape(-1, 4)


def moved(boxes, deltas, size):
    """Boxes moved by deltas of center and log size, clipped to the image."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = (boxes[..., 0] + boxes[..., 2]) / 2 + deltas[..., 0] * width
    y = (boxes[..., 1] + boxes[..., 3]) / 2 + deltas[..., 1] * height
    most = math.log(1000 / 16)
    half_width = width * deltas[..., 2].clamp(-most, most).exp() / 2
    half_height = height * deltas[..., 3].clamp(-most, most).exp() / 2
    x1, x2 = ((x + sign * half_width).clamp(0, size[1]) for sign in (-1, 1))
    y1, y2 = ((y + sign * half_height).clamp(0, size[0]) for sign in (-1, 1))
    return torch.stack([x1, y1, x2, y2], -1)


def pooled(maps, boxes, bins):
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (sides / 56 + 1e-6).log2().floor().clamp(0, 3)
    out = boxes.new_zeros(len(boxes), CHANNELS, bins, bins)
    for level in range(4):
        chosen = levels == level
        scale = 1 / STRIDES[level]
        out[chosen] = roi_align(maps[level], [boxes[chosen]], bins, scale, sampling_ratio=0, aligned=True)
    return out


class BoxHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared_fcs = nn.ModuleList([nn.Linear(CHANNELS * 49, 1024), nn.Linear(1024, 1024)])
        self.fc_cls, self.fc_reg = nn.Linear(1024, len(CLASSES) + 1), nn.Linear(1024, 4 * len(CLASSES))

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x), self.fc_reg(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(Wrapped(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2)
        self.conv_logits = nn.Conv2d(CHANNELS, len(CLASSES), 1)

    def forward(self, x):
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.conv_logits(F.relu(self.upsample(x)))


class RoiHead(nn.Module):
    def __init__(self, masks):
        super().__init__()
        self.bbox_head = BoxHead()
        if masks:
            self.mask_head = MaskHead()


class Detector(nn.Module):
    """mmdet's MaskRCNN, or FasterRCNN without ``masks``."""

    def __init__(self, dino, *, masks=True, **options):
        super().__init__()
        self.backbone, self.neck, self.rpn_head = PyramidBackbone(dino, **options), Fpn(), Rpn()
        self.roi_head = RoiHead(masks)

    def detect(self, image_1CHW, score=0.3, overlap=0.4):
        """Boxes, scores, labels and masks (probabilities over the boxes) in an image, the best first."""
        size = image_1CHW.shape[2:]
        maps = self.neck(self.backbone(normalized(image_1CHW, self.rpn_head.rpn_cls.weight.dtype)))
        proposals = self.rpn_head(maps, size)
        logits, deltas = self.roi_head.bbox_head(pooled(maps, proposals, 7))
        shares = logits.softmax(1)[:, :-1]  # the background is last
        deltas = deltas * torch.tensor([0.1, 0.1, 0.2, 0.2])
        boxes = moved(proposals[:, None].expand_as(deltas), deltas, size)
        rows, labels = (shares > score).nonzero(as_tuple=True)
        kept = batched_nms(boxes[rows, labels], shares[rows, labels], labels, overlap)
        rows, labels = rows[kept], labels[kept]
        boxes = boxes[rows, labels]
        masks = None
        if hasattr(self.roi_head, "mask_head"):
            probabilities = self.roi_head.mask_head(pooled(maps, boxes, 14)).sigmoid()
            masks = probabilities[torch.arange(len(labels)), labels]
        return boxes, shares[rows, labels], labels, masks
