"""COCO 2017, 80 classes, detection and instance segmentation (Section 4.2, Tables 5 and 10).

Paper: Mask R-CNN, AdamW at 1e-4, weight decay 5e-2, 12 epochs of 16 images, (1024, 1024) in Table 10. Twelve epochs of
the 118,287 training images are 88,716 steps. Release: patch 16, no weight decay of norms and biases, learning rate
divided by ten after epochs 8 and 11, 500 warm-up steps from a thousandth, a layer decay of 0.76 / 0.70 / 0.60 instead
of the tenth for the task head, DETR's multi-scale with crops of at most 1024 x 1024 padded with the mean color
(``--pad-color mean``), tests at 800 x 1333, and mmdetection's form of Mask R-CNN (``--rcnn mmdet``): aligned pooling
that samples every cell, L1 losses of boxes, unrounded anchors, and its matching and mask targets.

The release differs in all of these recipes; each difference is a flag:

- it resamples positions along the flattened grid, and from there as DINOv2's code: ``--patch-resample release
  --position-resample release``;
- it truncates in Eq. 2, which changes the layers of the base and the large model: ``--rounding int``.

Differences without a flag: images without objects are used in training (the release skips 1,021); images are padded on
all sides to multiples of 16 pixels, not at the bottom right to multiples of 32; odd grids are pooled with rounding up,
not down (``tasks.detection.pyramid``); downsampling is antialiased, unlike OpenCV's bilinear; the last layers also
predict a box and a mask for the background, without loss; and torchvision pastes masks into integer boxes.

For GPUs with less memory: ``--checkpoint-task-head``, ``--task-head-window 16`` (not in the paper),
``--accumulate 2``.
"""

from __future__ import annotations

from dataclasses import replace

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.train_config import LoopConfig, OptimConfig, TrainConfig, one_head

EPOCH = 7393
"""Steps per epoch of 118,287 images with batch size 16."""


def coco_small() -> TrainConfig:
    """ViT-Split-S on COCO: box AP 48.5, mask AP 42.8, 45 M trainable (Table 5).

    K_p = 4 as in Table 10; the release uses five layers, 2 4 6 8 11: ``--num-prior-layers 5 --rounding int``.
    """
    return one_head(
        name="coco-small",
        task=DetectionConfig(format="coco", pad_color="mean", rcnn="mmdet"),
        backbone=BackboneConfig(backbone="dinov2-small", patch_size=16),
        method=SplitConfig(num_tuned_layers=11, num_prior_layers=4, first_prior_layer=2),
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

    K_p = 6 as in Table 10, which makes 121.4 M; the table's 118 M matches no setting. The release trains with 8 images
    per step; its configuration with K_p = 5 fails (large backbone with the base model's width, and a layer 12).
    """
    small = coco_small()
    return small.change(
        name="coco-base",
        backbone=replace(small.backbone, backbone="dinov2-base"),
        method=SplitConfig(num_tuned_layers=11, num_prior_layers=6, first_prior_layer=2),
        optim=replace(small.optim, layer_decay=0.70),
    )


def coco_large() -> TrainConfig:
    """ViT-Split-L on COCO: box AP 53.0, mask AP 46.6, 348 M trainable as printed (Table 5).

    K_t = 23 and K_p = 8 from b = 6 as in Table 10, which makes 353.0 M; the table's 348 M matches no setting. The
    release trains with 8 images per step.
    """
    small = coco_small()
    return small.change(
        name="coco-large",
        backbone=replace(small.backbone, backbone="dinov2-large"),
        method=SplitConfig(num_tuned_layers=23, num_prior_layers=8, first_prior_layer=6),
        optim=replace(small.optim, layer_decay=0.60),
    )
