"""Cityscapes, 19 classes, at 896 px (Section 4.1, Tables 3, 8 and 10).

Paper: AdamW at 2e-4 (a tenth of it for the task head), weight decay 1e-2, 16 images per iteration, 20k iterations in
Tables 3 and 8 (40k in Section 4.1). Table 10 has a row for the large model only; K_t = K_p = 5 of the base model
follow from its 55.2 M parameters, and the small one is set accordingly, as in the release.

The release differs in all of these recipes; each difference is a flag:

- it resamples position embeddings as DINOv2's code: ``--position-resample release``;
- it trains with 8 images per iteration: ``--batch-size 8``;
- the small and the base model use the last layers, contrary to the paper's text: ``--selection last``;
- it stretches the logits of the padded image over the image: ``--pad-logits stretch``.

Dropout of 0.1, the scale of 2048 x 1024, a window stride of 512 pixels, padding with the mean color (``--pad-color
mean``) and the mean of the cross-entropy over all pixels (``--loss-average all``) are not specified in the paper and
follow the release. Differences without a flag are those of the ADE20K recipes.
"""

from __future__ import annotations

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.recipes.gate import with_gate
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import LoopConfig, TrainConfig, one_head


def cityscapes_small() -> TrainConfig:
    """ViT-Split-S on Cityscapes at 896 px: not in the paper; the release's settings.

    Layers 2 4 6 9 11 (4.5 is rounded to even); the release uses the last four, 8 to 11 (``--selection last
    --num-prior-layers 4``), and a tenth of the learning rate for the prior head and fusion net too.
    """
    return one_head(
        name="cityscapes-small",
        task=SegmentationConfig(
            format="cityscapes",
            crop_size=(896, 896),
            image_scale=(2048, 1024),
            pad_color="mean",
            dropout=0.1,
            loss_average="all",
            test_stride=(512, 512),
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=SplitConfig(num_tuned_layers=5, num_prior_layers=5, first_prior_layer=2),
        loop=LoopConfig(steps=20_000, batch_size=16),
    )


def cityscapes_base() -> TrainConfig:
    """ViT-Split-B on Cityscapes at 896 px: 84.2 mIoU, 85.2 multi-scale, 55.2 M trainable (Table 3).

    Layers 2 4 6 9 11 (4.5 is rounded to even); the release uses the last five, 7 to 11: ``--selection last``.
    """
    return cityscapes_small().change(name="cityscapes-base", backbone=BackboneConfig(backbone="dinov2-base"))


def cityscapes_large() -> TrainConfig:
    """ViT-Split-L on Cityscapes at 896 px: 85.8 mIoU, 86.7 multi-scale, 164.1 M trainable (Tables 3 and 8).

    The release trains this size at 1e-4: ``--lr 1e-4``. Its evaluation averages four scales by default
        (``--test-scales 1 1.25 1.5 1.75``), where it notes the single-scale value of Table 3.
    """
    return cityscapes_base().change(
        name="cityscapes-large",
        backbone=BackboneConfig(backbone="dinov2-large"),
        method=SplitConfig(num_tuned_layers=10, num_prior_layers=8, first_prior_layer=2),
    )


def cityscapes_large_gate() -> TrainConfig:
    """ViT-Split-L with the sparse gate on Cityscapes at 896 px: 85.7 mIoU, 164.1 M trainable as printed (Table 8).

    The gate mixes K_p = 4 maps, so this has 159.9 M trainable parameters; the table repeats the 164.1 M of the eight
    uniform layers.
    """
    return with_gate(cityscapes_large())
