"""Distance of features to those of the training images: the nearest of k-means centroids, by cosine.

Shapes: B batch, N tokens, D width, C centroids, h w patch grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CENTROIDS, ROUNDS = 256, 10


class Familiarity(nn.Module):
    """Centroids of a layer's tokens: 256 vectors of unit length, zero before ``fit``.

    Args:
        width: D.
        layer: Index of the block whose normalized output is compared, for those who pass it in.
    """

    centroids_CD: Tensor

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("centroids_CD", torch.zeros(CENTROIDS, width))

    @torch.no_grad()
    def fit(self, x_ND: Tensor) -> None:
        """Spherical k-means from evenly spaced tokens, so that it is deterministic; x_ND is of any length.

        With fewer tokens than centroids, some centroids are the same.
        """
        x_ND = F.normalize(x_ND.float(), dim=1)
        centroids_CD = x_ND[torch.arange(CENTROIDS, device=x_ND.device) * len(x_ND) // CENTROIDS]
        for _ in range(ROUNDS):
            nearest_N = (x_ND @ centroids_CD.T).argmax(1)
            sums_CD = torch.zeros_like(centroids_CD).index_add_(0, nearest_N, x_ND)
            is_used_C1 = torch.bincount(nearest_N, minlength=CENTROIDS)[:, None] > 0
            centroids_CD = torch.where(is_used_C1, F.normalize(sums_CD, dim=1), centroids_CD)
        self.centroids_CD.copy_(centroids_CD)

    def forward(self, map_BDhw: Tensor) -> Tensor:
        """The distance of each token, from 0 (as in training) to 2: (B, D, h, w) to (B, h, w) float32."""
        x_BDhw = F.normalize(map_BDhw.float(), dim=1)
        return 1 - torch.einsum("bdhw,cd->bchw", x_BDhw, self.centroids_CD).amax(1)
