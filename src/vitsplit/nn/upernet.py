"""UperNet (Xiao et al. 2018) with its auxiliary training head: the decoder of the published baselines.

Shapes: B batch, D width, C channels, K classes, h w and H W sizes of maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitsplit.errors import ConfigError
from vitsplit.nn.pointwise import Pointwise

CHANNELS = 512
AUXILIARY_CHANNELS = 256
AUXILIARY_LEVEL = 2
AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary head's cross-entropy in the loss."""
POOL_SIZES = (1, 2, 3, 6)
DROPOUT = 0.1
"""Default channel dropout before both classifiers."""
GROUPS = 32
NormName = Literal["batch", "group"]


class WithAuxiliary(NamedTuple):
    """Output of ``UperNet`` in training.

    Attributes:
        logits: (B, K, h, w) at the finest map's size.
        auxiliary: Logits of the auxiliary head, (B, K, h', w') at the third map's size.
    """

    logits: Tensor
    auxiliary: Tensor


class UperNet(nn.Module):
    """Pyramid pooling on the coarsest of four maps, a feature pyramid, and all levels concatenated at the finest size.

    mmsegmentation's ``UPerHead`` and ``FCNHead`` layer for layer, with PyTorch's initialization, as the paper's
    segmentation decoder: 29.19 + 0.92 / 32.33 + 1.81 / 34.43 + 2.40 M parameters for S / B / L and 150 classes.

    The maps may have any sizes: those of a pyramid with strides 4, 8, 16, 32, or all the same for four layers of a
    plain transformer.

    Args:
        width: D of every map.
        num_classes: K.
        norm: ``batch``, or ``group`` which needs no statistics over the batch.
        dropout: Probability of dropping a whole channel before the classifiers.
    """

    def __init__(self, width: int, num_classes: int, *, norm: NormName = "batch", dropout: float = DROPOUT) -> None:
        super().__init__()
        self.pooling = PyramidPooling(width, norm)
        self.laterals = nn.ModuleList(ConvNorm(width, CHANNELS, 1, norm) for _ in range(3))
        self.smooth = nn.ModuleList(ConvNorm(CHANNELS, CHANNELS, 3, norm) for _ in range(3))
        self.merge = ConvNorm(4 * CHANNELS, CHANNELS, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Pointwise(CHANNELS, num_classes)
        self.auxiliary = nn.Sequential(
            ConvNorm(width, AUXILIARY_CHANNELS, 3, norm),
            nn.Dropout2d(dropout),
            Pointwise(AUXILIARY_CHANNELS, num_classes),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor | WithAuxiliary:
        """Four maps (B, D, ., .), the finest first, to logits (B, K, h, w) at the finest size.

        In training, the auxiliary head's logits are returned too.
        """
        levels = [lateral(map_BDhw) for lateral, map_BDhw in zip(self.laterals, maps[:3], strict=True)]
        levels.append(self.pooling(maps[3]))
        for index in (2, 1, 0):
            levels[index] = levels[index] + resize(levels[index + 1], levels[index])
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, levels[:3], strict=True)]
        merged = self.merge(torch.cat([resize(level, levels[0]) for level in (*smoothed, levels[3])], dim=1))
        logits_BKhw = self.classify(self.dropout(merged))
        if not self.training:
            return logits_BKhw
        return WithAuxiliary(logits_BKhw, self.auxiliary(maps[AUXILIARY_LEVEL]))


class PyramidPooling(nn.Module):
    """Pyramid pooling: a map concatenated with its averages over 1x1, 2x2, 3x3 and 6x6 grids, (B, D, h, w) to (B, C,
    h, w).

    Args:
        width: D.
        norm: See ``UperNet``.
    """

    def __init__(self, width: int, norm: NormName) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(ConvNorm(width, CHANNELS, 1, norm) for _ in POOL_SIZES)
        self.mix = ConvNorm(width + len(POOL_SIZES) * CHANNELS, CHANNELS, 3, norm)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """See the class.

        Raises:
            ConfigError: In training with batch norm on a single image, which leaves one value per channel to
                normalize.
        """
        if self.training and len(map_BDhw) == 1 and type(self.reduce[0].norm) is nn.BatchNorm2d:
            raise ConfigError(
                "UperNet applies batch norm to 1x1 maps, which needs more than one image. Train with at least two "
                "images per process and micro-batch (--batch-size, --accumulate), or --decoder-norm group."
            )
        pooled = [
            resize(reduce(F.adaptive_avg_pool2d(map_BDhw, size)), map_BDhw)
            for reduce, size in zip(self.reduce, POOL_SIZES, strict=True)
        ]
        return self.mix(torch.cat([map_BDhw, *pooled], dim=1))


class ConvNorm(nn.Module):
    """Convolution without bias -> norm -> ReLU, at the same size.

    Args:
        in_channels: Channels in.
        channels: Channels out.
        kernel_size: 1 or 3.
        norm: See ``UperNet``.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, norm: NormName) -> None:
        super().__init__()
        self.conv: nn.Module = (
            Pointwise(in_channels, channels, bias=False)
            if kernel_size == 1
            else nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False)
        )
        self.norm: nn.Module = nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(GROUPS, channels)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """``(B, in_channels, h, w)`` to ``(B, channels, h, w)``."""
        return F.relu(self.norm(self.conv(map_BChw)))


def resize(map_BChw: Tensor, like: Tensor) -> Tensor:
    """Bilinear resizing to the height and width of another map."""
    if map_BChw.shape[2:] == like.shape[2:]:
        return map_BChw
    return F.interpolate(map_BChw, size=like.shape[2:], mode="bilinear", align_corners=False)
