"""NYUv2, depth in meters (Section E.6, Tables 10 and 11).

Paper: AdamW at 3e-4 (a tenth of it for the task head), weight decay 1e-2, one-cycle, 16 images, crops of 416 x 544. It
states 384K iterations; the release's 38,400 (24 epochs of 1,600 iterations) are used here. Release: augmentation with
gamma on values of 0 to 255 (``--color-values 0-255``), one-cycle down to 1/2500 of the peak (``--final-div-factor
100``), gradient clipping at 35, averaging with the mirrored image, and evaluation on the Eigen crop between 1 mm and 10
m.

The release differs in these recipes; each difference is a flag:

- it resamples position embeddings as DINOv2's code: ``--position-resample release``;
- it trains with 2 images per iteration, the large model with 4: ``--batch-size 2``;
- it trains the small model at 5e-4 with a polynomial decay: ``--lr 5e-4 --schedule poly --warmup-steps 3200``;
- in the others, mmcv's one-cycle hook uses one peak for all groups, so the tenth for the task head has no effect:
  ``--task-head-lr-scale 1``;
- it stretches the output of the padded image over the image: ``--pad-output stretch``;
- its last layer is initialized with a bias near zero: ``--start-depth 0.01`` is similar, the default here is 2.5 m.

A difference without a flag: augmented colors are rounded to integers. Crops are never larger than images, so nothing
is padded.

The data are the public lists ``nyu_train.txt`` and ``nyu_test.txt`` with their images, as for BTS.
"""

from __future__ import annotations

from vitsplit.backbone.config import BackboneConfig
from vitsplit.methods.split.config import SplitConfig
from vitsplit.tasks.depth.config import DepthConfig
from vitsplit.train_config import LoopConfig, OptimConfig, TrainConfig, one_head


def nyuv2_small() -> TrainConfig:
    """ViT-Split-S on NYUv2 depth: RMSE 0.3358 m, AbsRel 0.0897, 9.3 M trainable (Table 11)."""
    return one_head(
        name="nyuv2-small",
        task=DepthConfig(
            format="nyuv2",
            max_depth=10.0,
            crop_size=(416, 544),
            border=(45, 43, 8, 32),
            color_values="0-255",
            eval_crop="nyu-eigen",
        ),
        backbone=BackboneConfig(backbone="dinov2-small"),
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=2),
        optim=OptimConfig(lr=3e-4, weight_decay=1e-2, schedule="one-cycle", final_div_factor=100.0, clip_norm=35.0),
        loop=LoopConfig(steps=38_400, batch_size=16),
    )


def nyuv2_base() -> TrainConfig:
    """ViT-Split-B on NYUv2 depth: RMSE 0.3019 m, AbsRel 0.0853, 37.0 M trainable as printed (Table 11).

    K_t = 4 as in Table 10 and the release results in 44.0 M; Table 11's count corresponds to K_t = 3:
    ``--num-tuned-layers 3``.
    """
    return nyuv2_small().change(
        name="nyuv2-base",
        backbone=BackboneConfig(backbone="dinov2-base"),
        method=SplitConfig(num_tuned_layers=4, num_prior_layers=4, first_prior_layer=2),
    )


def nyuv2_large() -> TrainConfig:
    """ViT-Split-L on NYUv2 depth: RMSE 0.2672 m, AbsRel 0.078, 65.5 M trainable (Table 11).

    Eq. 2 with b = 6 results in layers 6, 12, 17 and 23; the release truncates 11.67 to 11: ``--rounding int``.
    """
    return nyuv2_small().change(
        name="nyuv2-large",
        backbone=BackboneConfig(backbone="dinov2-large"),
        method=SplitConfig(num_tuned_layers=3, num_prior_layers=4, first_prior_layer=6),
    )
