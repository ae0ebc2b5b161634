"""COCO 2017, 80 classes, detection and instance segmentation (Section 4.2, Tables 5 and 10).

Paper: Mask R-CNN, AdamW at 1e-4, weight decay 5e-2, 12 epochs of 16 images, (1024, 1024) in Table 10. Twelve epochs of
the 118,287 training images are 88,716 steps.
Release: patch 16, no decay of norms and biases, the rate lowered tenfold after epochs 8 and 11, 500 steps of warm-up
from a thousandth, a layer decay of 0.76 / 0.70 / 0.60 in place of the tenth for the task head, DETR's multi-scale with
crops of at most 1024 x 1024 padded with the mean color (``--pad-color mean``), tests at 800 x 1333, and mmdetection's
form of Mask R-CNN (``--rcnn mmdet``): aligned pooling that samples every cell, L1 losses of boxes, anchors that are not
rounded, matches and mask targets as there.

The release differs in all of these recipes; each difference is a flag:

- it resamples the positions along the raster order, and from there to an image's grid by DINOv2's own rule:
  ``--patch-resample release --position-resample release``;
- it truncates in Eq. 2, which changes layers of the base and the large model: ``--rounding int``.

What is left of differences is no flag: training images without objects are trained on (the release leaves out 1,021);
images are padded to multiples of 16 pixels around them, not of 32 below and at the right; odd grids are pooled up, not
down (``tasks.detection.pyramid``); images are made smaller with antialiasing, of which OpenCV's bilinear has none; the
last layers predict a box and a mask for the background too, which no loss reaches; and masks are pasted into boxes of
whole pixels, by torchvision.

For GPUs with less memory: ``--checkpoint-task-head``, ``--task-head-window 16`` (not in the paper),
``--accumulate 2``.
"""

from __future__ import annotations

from dataclasses import replace

from vitsplit.engine.config import BackboneConfig, LoopConfig, OptimConfig, SplitConfig, TrainConfig
from vitsplit.tasks import one_head
from vitsplit.tasks.detection.config import DetectionConfig

EPOCH = 7393
"""Steps of 16 that 118,287 images make."""


def coco_small() -> TrainConfig:
    """ViT-Split-S on COCO: box AP 48.5, mask AP 42.8, 45 M trainable (Table 5).

    K_p = 4 as in Table 10; the release reads five layers, 2 4 6 8 11: ``--num-prior-layers 5 --rounding int``.
    """
    return one_head(
        name="coco-small",
        task=DetectionConfig(format="coco", pad_color="mean", rcnn="mmdet"),
        backbone=BackboneConfig(backbone="dinov2-small", patch_size=16),
        split=SplitConfig(num_tuned_layers=11, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(
            lr=1e-4,
            task_head_lr_scale=1.0,
            layer_decay=0.76,
            weight_decay=0.05,
            decay_norms=False,
            schedule="step",
            warmup_steps=500,
            warmup_start=1e-3,
        ),
        loop=LoopConfig(steps=12 * EPOCH, batch_size=16),
    )


def coco_base() -> TrainConfig:
    """ViT-Split-B on COCO: box AP 51.8, mask AP 45.4, 118 M trainable as printed (Table 5).

    K_p = 6 as in Table 10, which makes 121.4 M; the table's 118 M fits no setting. The release trains with 8 images per
    step, and its file, with K_p = 5, cannot run: it names a large model of the base model's width, and a layer 12.
    """
    small = coco_small()
    return small.change(
        name="coco-base",
        backbone=replace(small.backbone, backbone="dinov2-base"),
        split=SplitConfig(num_tuned_layers=11, num_prior_layers=6, first_prior_layer=2),
        optim=replace(small.optim, layer_decay=0.70),
    )


def coco_large() -> TrainConfig:
    """ViT-Split-L on COCO: box AP 53.0, mask AP 46.6, 348 M trainable as printed (Table 5).

    K_t = 23 and K_p = 8 from b = 6 as in Table 10, which makes 353.0 M; the table's 348 M fits no setting. The release
    trains with 8 images per step.
    """
    small = coco_small()
    return small.change(
        name="coco-large",
        backbone=replace(small.backbone, backbone="dinov2-large"),
        split=SplitConfig(num_tuned_layers=23, num_prior_layers=8, first_prior_layer=6),
        optim=replace(small.optim, layer_decay=0.60),
    )
