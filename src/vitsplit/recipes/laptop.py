"""Recipes for a laptop or one GPU, and a few hundred images."""

from __future__ import annotations

from dataclasses import replace

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.tasks.detection.config import DetectionConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import LoopConfig, OptimConfig, TrainConfig, one_head


def laptop_segmentation() -> TrainConfig:
    """Custom data on a laptop: DINOv2-S at 252 x 336 px for 300 steps of 8 images, in minutes on two cores.

    Crops of 18 x 24 patches (aspect ratio 4:3), scaled by 0.75 to 1.5 (paper: 0.5 to 2); images are evaluated whole
    with a shorter side of 252 pixels. For a few hundred steps, what is new must not disturb what is pretrained: the
    fusion net adds to the task map and starts at zero (paper: it replaces it), the upsampling is filtered (paper: not),
    and the copies of six blocks (paper: three) have low-rank updates, at a learning rate of 1e-3 (paper: 2e-4, a tenth
    of it for copies tuned whole). docs/choosing.md has the measurements. For larger data sets increase ``--steps``; for
    finer masks increase ``--crop-size`` and ``--image-scale`` together, in multiples of 14.
    """
    return one_head(
        name="laptop-segmentation",
        task=SegmentationConfig(
            crop_size=(252, 336),
            image_scale=(1024, 252),
            scale_range=(0.75, 1.5),
            test_mode="whole",
            smooth_upsampling=True,
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=SplitConfig(
            num_tuned_layers=6, num_prior_layers=4, first_prior_layer=2, tune_blocks="lora", fusion_form="residual"
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=30),
        loop=LoopConfig(steps=300, batch_size=8),
    )


def laptop_segmentation_paper() -> TrainConfig:
    """``laptop-segmentation`` with the paper's model for ADE20K, for studies of its parts on few images.

    K_t = 3 copies tuned whole, K_p = 4, b = 2, and the fusion net and the decoder of the paper. For the short schedule,
    the learning rate is 2.5e-4 (paper: 2e-4), three tenths of it for the task head (paper: a tenth).
    """
    recipe = laptop_segmentation()
    return recipe.change(
        name="laptop-segmentation-paper",
        task=replace(recipe.task, smooth_upsampling=False),
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(lr=2.5e-4, task_head_lr_scale=0.3, warmup_steps=30),
    )


def laptop_depth() -> TrainConfig:
    """Depth of custom data on a laptop: DINOv2-S at 238 x 322 px for 200 steps of 8 images, in minutes.

    The head is that of ``laptop-segmentation`` (K_t = 6, low-rank updates of the copies, a residual fusion net), on
    crops of 17 x 23 patches from images with a shorter side of 252 pixels; they are evaluated whole at that size, as
    in ``laptop-segmentation``, so both can share a backbone pass. ``--test-flip`` averages with the mirrored image, as
    in the paper. For the short schedule, the decoder starts at the geometric mean of the training depths and filters
    its upsampling (release: neither), and the learning rate is one-cycle at 1e-3 (paper: 3e-4). Gamma is applied to
    values of 0 to 1, and one-cycle ends at PyTorch's default (release: ``--color-values 0-255`` and
    ``--final-div-factor 100``). Depth is unbounded; set ``--max-depth`` to the sensor's range.
    """
    return one_head(
        name="laptop-depth",
        task=DepthConfig(
            crop_size=(238, 322), image_scale=(1024, 252), test_flip=False, start_depth=None, smooth_upsampling=True
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=laptop_segmentation().method,
        optim=OptimConfig(lr=1e-3, schedule="one-cycle", clip_norm=35.0),
        loop=LoopConfig(steps=200, batch_size=8),
    )


def laptop_depth_paper() -> TrainConfig:
    """``laptop-depth`` with the paper's model for NYUv2, for studies of its parts on few images.

    K_t = 3 copies tuned whole, K_p = 4, b = 2, and the fusion net of the paper. For the short schedule, the learning
    rate of the task head is three tenths of 1e-3 (paper: a tenth of 3e-4).
    """
    recipe = laptop_depth()
    return recipe.change(
        name="laptop-depth-paper",
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=replace(recipe.optim, task_head_lr_scale=0.3),
    )


def laptop_detection() -> TrainConfig:
    """Detection of custom data on a laptop: DINOv2-S at 252 x 336 px for 800 steps of 4 images, in half an hour.

    Patch size 14, three copied blocks and a shorter side of 252 pixels as in the other laptop recipes (paper: patch
    size 16 and eleven blocks), so all can share a backbone pass. Training uses shorter sides of 196 to 308, and anchors
    are half as large as usual, 16 to 256 pixels. 128 pyramid channels and 128 sampled proposals per image (paper: 256
    and 512) limit the cost of the detector. Pooling, anchors and box losses are mmdet's, as in the release: after 100
    steps on BCCD the box AP is 0.318, with ``--rcnn torchvision`` 0.284 (one seed). For small objects increase
    ``--image-scale``, ``--train-sides`` and ``--crop-size`` together; for large data sets increase ``--steps`` and use
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
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(
            lr=2.5e-4, task_head_lr_scale=0.3, weight_decay=0.05, decay_norms=False, schedule="one-cycle"
        ),
        loop=LoopConfig(steps=800, batch_size=4),
    )
