"""Recipes for a machine of two cores, or one GPU, and a few hundred images."""

from __future__ import annotations

from vitsplit.engine.config import (
    BackboneConfig,
    LoopConfig,
    OptimConfig,
    SplitConfig,
    TrainConfig,
)
from vitsplit.tasks import one_head
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig


def laptop_segmentation() -> TrainConfig:
    """Your own images on a laptop: DINOv2-S at 252 x 336 px for 300 steps of 8 images, in minutes on two cores.

    The paper's model for ADE20K (K_t = 3, K_p = 4, b = 2) on crops of 18 x 24 patches, the shape of most photographs.
    Since 300 steps are few, the learning rate is 2.5e-4 (the paper's: 2e-4), the task head's three tenths of it (a
    tenth), and images are scaled by 0.75 to 1.5 (0.5 to 2). Images are evaluated whole, their shorter side at 252
    pixels. For a larger set raise ``--steps``; for finer masks ``--crop-size`` and ``--image-scale`` together, in
    multiples of 14.
    """
    return one_head(
        name="laptop-segmentation",
        task=SegmentationConfig(
            crop_size=(252, 336), image_scale=(1024, 252), scale_range=(0.75, 1.5), test_mode="whole"
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        split=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(lr=2.5e-4, task_head_lr_scale=0.3, warmup_steps=30),
        loop=LoopConfig(steps=300, batch_size=8),
    )


def laptop_depth() -> TrainConfig:
    """Depth from your own images on a laptop: DINOv2-S at 238 x 322 px for 200 steps of 8 images, in minutes.

    The paper's model for NYUv2 (K_t = 3, K_p = 4, b = 2) on crops of 17 x 23 patches out of images whose shorter side
    is 252 pixels; they are evaluated whole at that size, which is that of ``laptop-segmentation``: both share one pass.
    ``--test-flip`` averages with the mirror image, as the paper does, in a second pass. One-cycle at 5e-4 (the paper's:
    3e-4), the task head at three tenths of it (a tenth), since 200 steps are few. Gamma acts on values of 0 to 1 and
    one-cycle ends at PyTorch's rate (the release: ``--color-values 0-255 --final-div-factor 100``). Depth is unbounded;
    give ``--max-depth`` where the sensor's range ends.
    """
    return one_head(
        name="laptop-depth",
        task=DepthConfig(crop_size=(238, 322), image_scale=(1024, 252), test_flip=False),
        backbone=BackboneConfig(backbone="dinov2-small"),
        split=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(lr=5e-4, task_head_lr_scale=0.3, schedule="one-cycle", clip_norm=35.0),
        loop=LoopConfig(steps=200, batch_size=8),
    )


def laptop_detection() -> TrainConfig:
    """Objects in your own images on a laptop: DINOv2-S at 252 x 336 px for 800 steps of 4 images, in half an hour.

    Patch 14 and the three copied blocks of the other recipes for a laptop (the paper: patch 16 and eleven), and images
    tested at their size, 252 pixels on the shorter side: one pass of the backbone serves a bundle of each. Training
    draws shorter sides of 196 to 308, and anchors are half as large as usual, 16 to 256 pixels. A pyramid of 128
    channels and 128 proposals per image in the losses (256 and 512) keep the detector from costing several times what
    the rest does: masks, where every object has one, then add a fifth to a step. Pooling, anchors and losses of boxes
    are mmdet's, as in the release: after 100 steps on BCCD the box AP is 0.318, with ``--rcnn torchvision`` 0.284 (one
    seed). For small objects raise
    ``--image-scale``, ``--train-sides`` and ``--crop-size`` together, for a large set ``--steps``,
    ``--pyramid-width 256`` and ``--sampled-proposals 512``.
    """
    return one_head(
        name="laptop-detection",
        task=DetectionConfig(
            image_scale=(1024, 252),
            crop_size=(448, 448),
            train_sides=(196, 224, 252, 280, 308),
            anchor_sizes=(16, 32, 64, 128, 256),
            pyramid_width=128,
            sampled_proposals=128,
            rcnn="mmdet",
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        split=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(
            lr=2.5e-4, task_head_lr_scale=0.3, weight_decay=0.05, decay_norms=False, schedule="one-cycle"
        ),
        loop=LoopConfig(steps=800, batch_size=4),
    )
