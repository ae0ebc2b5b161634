"""The sparse gate (Appendix B.1, Eq. 5): a learned selection of the layers read by the prior head.

Shapes: L layers, J = K_p columns (mixed maps), B batch, D width, h w patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class SparseGate(nn.Module):
    """Mixes L maps into K_p, each a mixture (column) of its top K_p layers.

    As in the release: scores are initialized uniformly in 0..1; a softmax over layers with a temperature; all but the
    top K_p weights per column are set to zero; the straight-through estimator ``G_sp + G - stopgrad(G)`` (Eq. 5) gives
    every score a gradient; then each column is divided by its sum.

    Args:
        num_layers: L.
        num_maps: K_p, the number of columns and of layers kept per column.
        temperature: Temperature of the softmax.
    """

    def __init__(self, num_layers: int, num_maps: int, temperature: float = 0.5) -> None:
        super().__init__()
        self.num_maps = num_maps
        self.temperature = temperature
        self.scores_LJ = nn.Parameter(torch.rand(num_layers, num_maps))

    def weights(self) -> Tensor:
        """``G_sp``, (L, J): non-negative, columns sum to one, at most K_p nonzero entries per column."""
        soft_LJ = torch.softmax(self.scores_LJ / self.temperature, dim=0)
        top_kJ = soft_LJ.topk(self.num_maps, dim=0).indices
        sparse_LJ = soft_LJ * torch.zeros_like(soft_LJ).scatter(0, top_kJ, 1.0)
        # The difference is exactly zero, so dropped weights stay exactly zero; it only adds a gradient.
        through_LJ = sparse_LJ + (self.scores_LJ - self.scores_LJ.detach())
        return through_LJ / through_LJ.sum(dim=0, keepdim=True)

    @torch.no_grad()
    def used_layers(self) -> tuple[int, ...]:
        """The layers kept by at least one column, which suffice for inference."""
        return tuple(self.weights().any(dim=1).nonzero().flatten().tolist())

    def forward(self, maps: Mapping[int, Tensor]) -> list[Tensor]:
        """Mixes maps by layer index, (B, D, h, w), into K_p maps, without synchronizing with the device.

        Training requires all layers, since zero weights also have gradients; inference requires ``used_layers``.

        Raises:
            KeyError: In training, a layer is missing.
            RuntimeError: In inference, a layer of ``used_layers`` is missing.
        """
        weights_LJ = self.weights()
        layers: Sequence[int] = range(len(weights_LJ))
        if not self.training:
            missing = [layer for layer in layers if layer not in maps]
            if missing:
                torch._assert_async(~weights_LJ[missing].any(), f"the gate keeps a layer among {missing}")
            layers = [layer for layer in layers if layer in maps]
            weights_LJ = weights_LJ[layers]
        return list(_Mix.apply(weights_LJ, *(maps[layer] for layer in layers)))


class _Mix(torch.autograd.Function):
    """``mixed_j = sum_l weights[l][j] * map_l``, accumulated in float32, with the gradient of the weights.

    Saves only the L maps (which are constants). Plain arithmetic would need a temporary map and a graph node for each
    of the L x K_p products.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weights_LJ: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*maps)
        mixed = [torch.zeros_like(maps[0], dtype=torch.float32) for _ in weights_LJ[0]]
        for weights_J, map_BDhw in zip(weights_LJ, maps, strict=True):
            for out, weight in zip(mixed, weights_J, strict=True):
                out.addcmul_(map_BDhw, weight)
        return tuple(out.to(maps[0].dtype) for out in mixed)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        maps: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_JC = torch.stack([grad.to(maps[0].dtype).permute(0, 2, 3, 1).flatten() for grad in grads])
        grad_LJ = torch.stack([grad_JC @ map_BDhw.permute(0, 2, 3, 1).flatten() for map_BDhw in maps]).float()
        return grad_LJ, *([None] * len(maps))
