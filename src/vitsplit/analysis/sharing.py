"""What several bundles cost on one backbone, against as many separate models: arithmetic on shapes alone.

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
        description: What it says of its task (``Card.description``).
        used_layers: Layers that a trained gate keeps, if it has one.
    """

    config: TrainConfig
    description: Mapping[str, Any]
    used_layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _View:
    """Images that a bundle sends through the network: all of an image, mirrored or not, or windows of it."""

    size: tuple[int, int]
    pixels: bytes
    backbone_gmacs: float
    head_gmacs: float


def compare_sharing(sharers: Mapping[str, SharedBundle], size: tuple[int, int]) -> dict[str, Any]:
    """Parameters, memory of the weights and multiply-adds of bundles that share a backbone, and of separate models.

    The views are those that prediction makes: the tasks' own code resizes, mirrors and cuts an image of noise. A view
    that several bundles have in common is one pass, which runs as many blocks as the bundle that asks for most; heads
    cost the same either way. A detector is counted at its full load, and of a language model nothing.

    Args:
        sharers: The bundles, by name.
        size: Height and width of the image.

    Returns:
        JSON-ready. ``backbone``: its name. ``bundles``: by name ``parameters`` (besides the backbone), and ``gmacs`` of
        ``backbone`` and ``head`` in one prediction alone. ``passes``: ``size``, ``bundles`` and ``gmacs`` of each.
        ``parameters``, ``gmacs`` of one prediction, and ``bytes`` of the weights with the backbone in ``fp32`` and in
        ``bf16`` (norms and heads stay float32): each ``shared`` and ``separate``. ``time_bound``: how many times as
        fast sharing can be where time goes by multiply-adds.

    Raises:
        ConfigError: The backbones are not the same.
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
    """What one prediction of a bundle sends through the network, with its products of matrices and convolutions."""
    views: list[_View] = []

    @torch.no_grad()
    def forward(image_BCHW: Tensor) -> tuple[Tensor, LayerTaps]:
        frozen, trained = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with frozen:
            taps = backbone(image_BCHW.to("meta"), model.request(train=False))
        with trained:
            output = model(taps)
        view_size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
        pixels = image_BCHW.contiguous().numpy().tobytes()
        views.append(_View(view_size, pixels, frozen.get_total_flops() / 2e9, trained.get_total_flops() / 2e9))
        if not hasattr(task, "dense"):
            raise _ForwardDoneError
        return torch.zeros(output.shape), taps

    noise_BCHW = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with suppress(_ForwardDoneError):
        task.predict(forward, noise_BCHW)
    return views


class _ForwardDoneError(Exception):
    """A detector or a language model has seen its one view; nothing is left to compute."""


def _passes(views: Mapping[str, Sequence[_View]]) -> list[dict[str, Any]]:
    """The passes in the order in which they come up; equal pixels are one."""
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
                f"{first} is on {backbone.name}, and {name} on {other.name}. "
                "One backbone serves only bundles that were trained on it."
            )
    return backbone


def _shared_and_separate(backbone: int, heads: Sequence[int]) -> dict[str, int]:
    return {"shared": backbone + sum(heads), "separate": len(heads) * backbone + sum(heads)}


def _own_parameters(model: nn.Module, backbone: nn.Module) -> list[nn.Parameter]:
    """What a model has besides the backbone: a method may share the backbone's weights and put parts of its own in."""
    shared = {id(parameter) for parameter in backbone.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in shared]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
