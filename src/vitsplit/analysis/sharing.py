"""Cost of several bundles on a shared backbone compared with separate models, computed from shapes.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitsplit.analysis.cost import shape_model, without_language_model
from vitsplit.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.model import Head
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.train_config import TrainConfig
from vitsplit.types import LayerTaps


@dataclass(frozen=True)
class SharedBundle:
    """One of the bundles.

    Attributes:
        config: Its configuration.
        description: Its task description (``Card.description``).
        used_layers: Layers kept by a trained gate, if any.
    """

    config: TrainConfig
    description: Mapping[str, Any]
    used_layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _View:
    """Network input of a bundle: an image, its mirror image, or windows of it."""

    size: tuple[int, int]
    pixels: bytes
    backbone_gmacs: float
    head_gmacs: float


def compare_sharing(sharers: Mapping[str, SharedBundle], size: tuple[int, int]) -> dict[str, Any]:
    """Parameters, memory of weights and multiply-adds of bundles on a shared backbone and of separate models.

    Network inputs are obtained by running the tasks' prediction code on a noise image. Bundles with the same input
    share a backbone pass, with the maximum number of blocks required; the cost of heads is the same. A detector is
    counted with its maximum number of objects, and language models are excluded.

    Args:
        sharers: Name to bundle.
        size: Height and width of the image.

    Returns:
        JSON-ready. ``backbone``: its name. ``bundles``: by name ``parameters`` (without the backbone), and ``gmacs`` of
        ``backbone`` and ``head`` in a separate prediction. ``passes``: ``size``, ``bundles`` and ``gmacs`` of each.
        ``parameters``, ``gmacs`` of one prediction, and ``bytes`` of the weights with the backbone in ``fp32`` and in
        ``bf16`` (norms and heads stay float32): each ``shared`` and ``separate``. ``time_bound``: speedup by
        sharing according to the multiply-adds.

    Raises:
        ConfigError: The backbones differ.
    """
    configs = {
        name: each.config.change(method=each.config.method.without_gate(each.used_layers))
        for name, each in sharers.items()
    }
    models = {name: shape_model(configs[name], description=sharer.description) for name, sharer in sharers.items()}
    backbone = _same_backbone({name: backbone for name, (backbone, _) in models.items()})
    views = {
        name: _views(bare_task(configs[name].task, without_language_model(sharer.description)), *models[name], size)
        for name, sharer in sharers.items()
    }
    alone = {
        name: {
            "backbone": sum(view.backbone_gmacs for view in several),
            "head": sum(view.head_gmacs for view in several),
        }
        for name, several in views.items()
    }
    passes = _passes(views)
    heads = sum(cost["head"] for cost in alone.values())
    cost = {
        "shared": sum(each["gmacs"] for each in passes) + heads,
        "separate": sum(cost["backbone"] for cost in alone.values()) + heads,
    }
    own = {name: _own_parameters(model, loaded) for name, (loaded, model) in models.items()}
    sizes = {name: sum(parameter.numel() for parameter in parameters) for name, parameters in own.items()}
    head_bytes = [sum(parameter.nbytes for parameter in parameters) for parameters in own.values()]
    fp32_bytes = _num_bytes(backbone)
    backbone.set_precision(torch.bfloat16)
    return {
        "backbone": backbone.name,
        "bundles": {name: {"parameters": sizes[name], "gmacs": alone[name]} for name in sharers},
        "passes": passes,
        "parameters": _shared_and_separate(_count(backbone), [*sizes.values()]),
        "bytes": {
            "fp32": _shared_and_separate(fp32_bytes, head_bytes),
            "bf16": _shared_and_separate(_num_bytes(backbone), head_bytes),
        },
        "gmacs": cost,
        "time_bound": cost["separate"] / cost["shared"],
    }


def _views(task: Task, backbone: Backbone, model: Head, size: tuple[int, int]) -> list[_View]:
    """The network inputs of one prediction of a bundle, with their multiply-adds."""
    views: list[_View] = []
    passes: dict[torch.Size, tuple[float, float, Tensor, LayerTaps]] = {}

    def forward(image_BCHW: Tensor) -> tuple[Tensor, LayerTaps]:
        if image_BCHW.shape not in passes:
            passes[image_BCHW.shape] = _count_pass(backbone, model, image_BCHW.shape)
        backbone_gmacs, head_gmacs, output, taps = passes[image_BCHW.shape]
        view_size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        views.append(_View(view_size, image_BCHW.contiguous().numpy().tobytes(), backbone_gmacs, head_gmacs))
        if not hasattr(task, "dense"):
            raise _ForwardDoneError
        return output, taps

    noise_BCHW = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dense: Any = task
    with suppress(_ForwardDoneError):
        # Outputs are on the meta device: resizing those of 150 classes takes seconds and gigabytes.
        (dense.dense if hasattr(task, "dense") else task.predict)(forward, noise_BCHW)
    return views


@torch.no_grad()
def _count_pass(backbone: Backbone, model: Head, shape: torch.Size) -> tuple[float, float, Tensor, LayerTaps]:
    """Multiply-adds of the backbone and of a head on a batch, with the head's output and the taps, without values."""
    frozen, trained = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with frozen:
        taps = backbone(torch.empty(shape, dtype=torch.uint8, device="meta"), model.request(train=False))
    with trained:
        output = model(taps)
    return frozen.get_total_flops() / 2e9, trained.get_total_flops() / 2e9, output, taps


class _ForwardDoneError(Exception):
    """Ends the prediction of a detector or language model after its only forward pass."""


def _passes(views: Mapping[str, Sequence[_View]]) -> list[dict[str, Any]]:
    """The distinct passes, in order; inputs with equal pixels are merged."""
    passes: dict[tuple[tuple[int, int], bytes], dict[str, Any]] = {}
    for name, several in views.items():
        for view in several:
            one = passes.setdefault((view.size, view.pixels), {"size": [*view.size], "bundles": [], "gmacs": 0.0})
            one["bundles"].append(name)
            one["gmacs"] = max(one["gmacs"], view.backbone_gmacs)
    return list(passes.values())


def _same_backbone(backbones: Mapping[str, Backbone]) -> Backbone:
    first, backbone = next(iter(backbones.items()))
    for name, other in backbones.items():
        if other.name != backbone.name:
            raise ConfigError(
                f"{first} was trained on {backbone.name}, but {name} on {other.name}. "
                "Only bundles of the same backbone can share it."
            )
    return backbone


def _shared_and_separate(backbone: int, heads: Sequence[int]) -> dict[str, int]:
    return {"shared": backbone + sum(heads), "separate": len(heads) * backbone + sum(heads)}


def _own_parameters(model: nn.Module, backbone: nn.Module) -> list[nn.Parameter]:
    """Parameters of a model that are not those of the backbone, whose weights a method may share."""
    shared = {id(parameter) for parameter in backbone.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in shared]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
