"""Pascal Context, 59 classes, at 480 px (Section E.7, Tables 10 and 16).

Paper: AdamW at 1e-4 (a tenth of it for the task head), weight decay 1e-2, 20k iterations of 16 images; the release has
the same. Table 10 has a row for the large model only; K_t = K_p = 4 of the base model follow from its 47.5 M
parameters.

The release differs in both recipes; each difference is a flag:

- it resamples position embeddings as DINOv2's code: ``--position-resample release``;
- it uses the last layers, while Table 10 has b = 2: ``--selection last``;
- it stretches the logits of the padded image over the image: ``--pad-logits stretch``.

Dropout of 0.1, the scale of 520 x 520, padding with the mean color (``--pad-color mean``) and the mean of the
cross-entropy over all pixels (``--loss-average all``) are not specified in the paper and follow the release. Its window
stride of 512 exceeds the window size; for images up to 520 pixels, the default stride results in the same windows.
Differences without a flag are those of the ADE20K recipes.
"""

from __future__ import annotations

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.train_config import LoopConfig, OptimConfig, TrainConfig, one_head


def pascal_context_base() -> TrainConfig:
    """ViT-Split-B on Pascal Context at 480 px: 66.4 mIoU, 66.8 multi-scale, 47.5 M trainable (Table 16).

    Layers 2 5 8 11; the release uses 8 to 11.
    """
    return one_head(
        name="pascal-context-base",
        task=SegmentationConfig(
            format="pascal-context",
            crop_size=(480, 480),
            image_scale=(520, 520),
            pad_color="mean",
            dropout=0.1,
            loss_average="all",
        ),
        backbone=BackboneConfig(backbone="dinov2-base"),
        method=SplitConfig(num_tuned_layers=4, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(lr=1e-4),
        loop=LoopConfig(steps=20_000, batch_size=16),
    )


def pascal_context_large() -> TrainConfig:
    """ViT-Split-L on Pascal Context at 480 px: 68.1 mIoU, 68.6 multi-scale, 115.8 M trainable (Table 16).

    Layers 2 4 7 9 11 14 16 18 21 23 with the paper's rounding, 2 4 6 9 11 13 16 18 20 23 with ``--rounding int``; the
    release uses 14 to 23.
    """
    return pascal_context_base().change(
        name="pascal-context-large",
        backbone=BackboneConfig(backbone="dinov2-large"),
        method=SplitConfig(num_tuned_layers=6, num_prior_layers=10, first_prior_layer=2),
    )
