"""The feature maps of all layers, of frozen models and models trained on a task (Figures 4 and 13).

Shapes: B images, T tokens, D width, h w patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.model import Head
from vitsplit.types import TapRequest


@dataclass(frozen=True)
class ModelMaps:
    """The maps of one model, in the order of computation.

    Attributes:
        name: The name of the model.
        labels: The label of each map: ``layer 3`` (frozen), ``tuned 9`` (a trained block replacing layer 9), ``prior``,
            ``fused``.
        maps: The maps ``map_BDhw``, float32, on the CPU.
    """

    name: str
    labels: tuple[str, ...]
    maps: tuple[Tensor, ...]


def backbone_maps(name: str, backbone: Backbone, image_BCHW: Tensor, *, normed: bool = False) -> ModelMaps:
    """The maps of all layers of a frozen model.

    Args:
        name: Display name.
        backbone: The model.
        image_BCHW: uint8 images.
        normed: Whether to apply the final norm, as for the heads.
    """
    return _model_maps(name, _frozen(backbone, image_BCHW, backbone.num_layers, normed))


@torch.no_grad()
def trained_maps(name: str, backbone: Backbone, model: Head, image_BCHW: Tensor, *, normed: bool = False) -> ModelMaps:
    """The maps of a trained model: frozen layers, then the trained modules.

    For ViT-Split, the blocks of the task head replace the last K_t layers, followed by the map of the prior head and
    the fused map. Full fine-tuning has no frozen layers; the linear probe and heads without blocks have no others.

    Args:
        name: Display name.
        backbone: The frozen backbone.
        model: Head and decoder; the decoder is not run.
        image_BCHW: uint8 images.
        normed: Whether to apply the final norm to layers and blocks.

    Raises:
        ConfigError: The layers of the method are not sequential.
    """
    head = model.eval().head
    if not hasattr(head, "trained_maps"):
        raise ConfigError(
            f"{name}: the layers of a {type(head).__name__} are not supported. Use runs of --method vitsplit, "
            "linear-probe, frozen-head, full-finetune or upernet."
        )
    taps = backbone(image_BCHW.to(backbone.mean_C11.device), head.request(train=False))
    count, trained = head.trained_maps(taps, backbone.num_layers, normed=normed)
    return _model_maps(name, [*_frozen(backbone, image_BCHW, count, normed), *trained])


def first_channel(map_BDhw: Tensor) -> Tensor:
    """The first channel, as shown in the paper, ``(B, h, w)``."""
    return map_BDhw[:, 0]


def principal_components(map_BDhw: Tensor, like_BhwC: Tensor | None = None) -> tuple[Tensor, tuple[float, ...]]:
    """The first three principal components of the tokens of all images.

    The sign of a component is chosen to correlate positively with the reference component, or so that its largest
    weight is positive.

    Args:
        map_BDhw: The map; at least three channels and two tokens.
        like_BhwC: Reference components, from another layer or model on the same images and grid.

    Returns:
        ``scores_BhwC``, float32, and the fraction of variance explained by each component.
    """
    x_BhwD = map_BDhw.permute(0, 2, 3, 1).double()
    x_ND = x_BhwD.flatten(0, 2)
    x_ND = x_ND - x_ND.mean(0)
    variance_D, direction_DD = torch.linalg.eigh(x_ND.T @ x_ND / max(1, len(x_ND) - 1))
    direction_DC = direction_DD.flip(1)[:, :3]
    largest_1C = direction_DC.abs().argmax(0, keepdim=True)
    direction_DC = direction_DC * direction_DC.gather(0, largest_1C).sign()
    scores_BhwC = (x_ND @ direction_DC).unflatten(0, x_BhwD.shape[:3])
    if like_BhwC is not None and like_BhwC.shape == scores_BhwC.shape:
        together_C = (scores_BhwC * like_BhwC).sum((0, 1, 2))
        scores_BhwC = torch.where(together_C < 0, -scores_BhwC, scores_BhwC)
    total = float(variance_D.clamp_min(0).sum())
    shares = tuple(float(each) / total if total > 0 else 0.0 for each in variance_D.flip(0)[:3].clamp_min(0))
    return scores_BhwC.float(), shares


def rescale_percentiles(values: Tensor) -> Tensor:
    """Rescales each channel (last dimension) from its 1st and 99th percentiles over all images to 0..1."""
    flat_NC = values.reshape(-1, values.shape[-1])
    low_C, high_C = torch.quantile(flat_NC[:: max(1, len(flat_NC) // 100_000)], torch.tensor([0.01, 0.99]), dim=0)
    return ((values - low_C) / (high_C - low_C).clamp_min(1e-12)).clamp(0, 1)


def _frozen(backbone: Backbone, image_BCHW: Tensor, count: int, normed: bool) -> list[tuple[str, Tensor]]:
    layers = frozenset(range(count))
    request = TapRequest(maps=layers) if normed else TapRequest(raw_maps=layers)
    taps = backbone(image_BCHW.to(backbone.mean_C11.device), request)
    maps = taps.maps if normed else taps.raw_maps
    return [(f"layer {layer}", maps[layer]) for layer in range(count)]


def _model_maps(name: str, found: Sequence[tuple[str, Tensor]]) -> ModelMaps:
    return ModelMaps(name, tuple(label for label, _ in found), tuple(map_BDhw.float().cpu() for _, map_BDhw in found))
