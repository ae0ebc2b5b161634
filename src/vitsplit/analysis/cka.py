"""Similarity of the layers of frozen models: linear CKA, estimated from small batches (Figures 3, 12 and 15).

Centered kernel alignment (Kornblith et al. 2019) of two layers compares their n x n similarity matrices of the same n
images. The unbiased estimate of HSIC (Song et al. 2012) is averaged over batches before taking the quotient (Nguyen et
al. 2021), so that neither the batch size nor the number of images biases it, and memory does not grow with the number
of images.

Shapes: B images of a batch, M layers (of all models, concatenated), F features of an image in a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError, DataError
from vitsplit.types import TapRequest

LEAST_BATCH = 4
"""Minimum batch size of the unbiased estimate."""
CONTRAST = 0.05
"""Minimum ``SplitPoint.beyond_distance`` for the layers to form two blocks."""


@dataclass(frozen=True)
class Similarity:
    """The CKA of all pairs of layers.

    Attributes:
        layers: Name of each model to its number of layers, in the order of rows and columns.
        cka_MM: (M, M) float64, symmetric, ones on the diagonal. The unbiased estimate can lie slightly outside 0..1.
        images: Number of images.
    """

    layers: Mapping[str, int]
    cka_MM: NDArray[np.float64]
    images: int

    def between(self, first: str, second: str) -> NDArray[np.float64]:
        """The submatrix of the layers of one model (rows) and another, or the same."""
        return self.cka_MM[self._rows(first), self._rows(second)]

    def split_point(self, name: str) -> SplitPoint:
        """The best division of the layers of a model into two blocks."""
        return split_point(self.between(name, name))

    def _rows(self, name: str) -> slice:
        names = list(self.layers)
        begin = sum(self.layers[each] for each in names[: names.index(name)])
        return slice(begin, begin + self.layers[name])


@dataclass(frozen=True)
class SplitPoint:
    """The division of the layers of a model into an early and a late block of similar layers.

    Attributes:
        first_late_layer: The first layer (0-based) of the late block.
        within: Mean CKA of two different layers of the same block.
        across: Mean CKA of two layers of different blocks.
        beyond_distance: The difference of ``within`` and ``across`` that is not explained by the distance of layers,
            computed after subtracting from each CKA value the mean over pairs of the same distance. Zero if layers
            change evenly from first to last.
    """

    first_late_layer: int
    within: float
    across: float
    beyond_distance: float

    @property
    def contrast(self) -> float:
        """Difference of the mean CKA within and across blocks."""
        return self.within - self.across


class CkaEstimator:
    """Accumulates batches. Memory is that of one M x M matrix.

    Example:
        >>> estimator = CkaEstimator()
        >>> features = torch.randn(8, 5)
        >>> estimator.add([features, 3 * features])
        >>> bool(abs(estimator.result()[0, 1] - 1) < 1e-6)
        True
    """

    def __init__(self) -> None:
        self._hsic_MM: Tensor | None = None
        self.images = 0

    def add(self, features: Sequence[Tensor]) -> None:
        """Adds a batch.

        Args:
            features: For each layer, the features ``(B, F)`` of the same images; F may differ.

        Raises:
            ConfigError: There are fewer than four images.
        """
        count = len(features[0])
        if count < LEAST_BATCH:
            raise ConfigError(f"CKA compares images with each other: a batch of {count} is too small, give at least 4.")
        similarities_MBB = torch.stack([_similarities(features_BF) for features_BF in features])
        hsic_MM = _unbiased_hsic(similarities_MBB)
        self._hsic_MM = hsic_MM if self._hsic_MM is None else self._hsic_MM + hsic_MM
        self.images += count

    def result(self) -> NDArray[np.float64]:
        """``cka_MM``.

        Raises:
            DataError: There was no batch, or a layer is constant over images.
        """
        if self._hsic_MM is None:
            raise DataError("There were no images to compare layers on.")
        own_M = self._hsic_MM.diagonal()
        if not bool((own_M > 0).all()):
            raise DataError("A layer has no variance over the images. Use more, different images.")
        cka_MM: NDArray[np.float64] = (self._hsic_MM / (own_M[:, None] * own_M[None, :]).sqrt()).cpu().numpy()
        return cka_MM


def compare_layers(
    backbones: Mapping[str, Backbone],
    batches: Iterable[Sequence[Tensor]],
    *,
    normed: bool = False,
    on_batch: Callable[[int], None] = lambda images: None,
) -> Similarity:
    """The CKA of all layers of models on the same images.

    The features of an image in a layer are the values of all its patch tokens, without class and register tokens.

    Args:
        backbones: Name to model.
        batches: For each batch, the images ``(B, 3, H, W)`` for each model in the order of ``backbones`` (models may
            need different sizes).
        normed: Apply the final norm to each layer, as for the heads.
        on_batch: Called with the number of images after each batch.

    Raises:
        ConfigError: A batch has fewer than four images.
        DataError: There are no images, or all are the same.
    """
    estimator = CkaEstimator()
    for images in batches:
        features: list[Tensor] = []
        for backbone, image_BCHW in zip(backbones.values(), images, strict=True):
            every = frozenset(range(backbone.num_layers))
            request = TapRequest(maps=every) if normed else TapRequest(raw_maps=every)
            taps = backbone(image_BCHW.to(backbone.mean_C11.device), request)
            maps = taps.maps if normed else taps.raw_maps
            features += [maps[layer].flatten(1) for layer in range(backbone.num_layers)]
        estimator.add(features)
        on_batch(len(images[0]))
    layers = {name: backbone.num_layers for name, backbone in backbones.items()}
    return Similarity(layers, estimator.result(), estimator.images)


def split_point(cka_LL: NDArray[np.float64]) -> SplitPoint:
    """The division into two blocks of at least two layers with the greatest contrast.

    Raises:
        ConfigError: There are fewer than four layers.
    """
    num_layers = len(cka_LL)
    if num_layers < 4:
        raise ConfigError(f"A model of {num_layers} layers cannot be divided into two blocks of at least two.")
    candidates = [_divide(cka_LL, layer) for layer in range(2, num_layers - 1)]
    return max(candidates, key=lambda candidate: candidate.contrast)


def _divide(cka_LL: NDArray[np.float64], layer: int) -> SplitPoint:
    is_late_L = np.arange(len(cka_LL)) >= layer
    same_LL = is_late_L[:, None] == is_late_L[None, :]
    within_LL = same_LL & ~np.eye(len(cka_LL), dtype=bool)
    left_LL = cka_LL - _mean_at_distance(cka_LL)
    return SplitPoint(
        first_late_layer=layer,
        within=float(cka_LL[within_LL].mean()),
        across=float(cka_LL[~same_LL].mean()),
        beyond_distance=float(left_LL[within_LL].mean() - left_LL[~same_LL].mean()),
    )


def _mean_at_distance(cka_LL: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pair of layers, the mean CKA over all pairs of the same distance."""
    layers_L = np.arange(len(cka_LL))
    distance_LL = np.abs(layers_L[:, None] - layers_L[None, :])
    means_L = np.array([cka_LL[distance_LL == distance].mean() for distance in layers_L])
    means_LL: NDArray[np.float64] = means_L[distance_LL]
    return means_LL


def _similarities(features_BF: Tensor) -> Tensor:
    """Linear similarities of all pairs of images, float64, zero on the diagonal.

    Features are centered first for numerical accuracy; the estimate does not depend on the mean.
    """
    centered_BF = features_BF.float() - features_BF.float().mean(0, keepdim=True)
    similarities_BB = (centered_BF @ centered_BF.T).double()
    return similarities_BB.fill_diagonal_(0.0)


def _unbiased_hsic(similarities_MBB: Tensor) -> Tensor:
    """HSIC_1 of Song et al. (2012), Eq. 5, of all pairs of layers, ``(M, M)``; the diagonals must be zero.

    ``(tr(K L) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K L1) / (n (n - 3))``
    """
    count = similarities_MBB.shape[1]
    flat_MN = similarities_MBB.flatten(1)
    rows_MB = similarities_MBB.sum(2)
    sums_M = rows_MB.sum(1)
    trace_MM = flat_MN @ flat_MN.T
    total_MM = sums_M[:, None] * sums_M[None, :] / ((count - 1) * (count - 2))
    cross_MM = rows_MB @ rows_MB.T * 2 / (count - 2)
    return (trace_MM + total_MM - cross_MM) / (count * (count - 3))
