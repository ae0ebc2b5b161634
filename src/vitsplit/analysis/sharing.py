"""What several bundles cost on one backbone, against as many separate models: arithmetic on shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitsplit.analysis.cost import gmacs, shape_model
from vitsplit.backbone import Backbone
from vitsplit.errors import ConfigError
from vitsplit.tasks.model import TaskModel
from vitsplit.training.config import TrainConfig


@dataclass(frozen=True)
class Sharer:
    """One of the bundles.

    Attributes:
        config: Its configuration.
        size: Height and width that its images have when they enter the backbone.
        num_classes: Classes of its data; 0 for a task without.
        description: What a bundle says of its task; None for a recipe.
        used_layers: Layers that a trained gate keeps, if it has one.
    """

    config: TrainConfig[Any]
    size: tuple[int, int]
    num_classes: int
    description: Mapping[str, Any] | None = None
    used_layers: tuple[int, ...] | None = None


def compare_sharing(sharers: Mapping[str, Sharer]) -> dict[str, Any]:
    """Parameters, memory of the weights and multiply-adds of bundles that share a backbone, and of separate models.

    A pass of the backbone serves every bundle whose images have its size, and runs as many blocks as the one that asks
    for most. Heads cost the same either way.

    Returns:
        JSON-ready. ``backbone``: its name. ``bundles``: per name ``size``, ``parameters`` (all that it holds besides
        the backbone), and ``gmacs`` of ``backbone`` and ``head`` when it is used alone. ``passes``: per input size
        ``size``, ``bundles`` and ``gmacs``. ``parameters``, ``gmacs`` (of one prediction with every bundle), and
        ``bytes`` of the weights with the backbone in ``fp32`` and in ``bf16`` (norms and heads stay float32): each
        ``shared`` and ``separate``. ``time_bound``: how many times as fast sharing can be where time goes by
        multiply-adds.

    Raises:
        ConfigError: The backbones are not the same.
    """
    models = {
        name: shape_model(_ungated(sharer), sharer.num_classes, sharer.description) for name, sharer in sharers.items()
    }
    backbone = _same_backbone({name: backbone for name, (backbone, _) in models.items()})
    bundles = {name: _alone(sharers[name], *models[name]) for name in sharers}
    of_size: dict[tuple[int, int], list[str]] = {}
    for name, sharer in sharers.items():
        of_size.setdefault(sharer.size, []).append(name)
    passes = [
        {"size": list(size), "bundles": names, "gmacs": max(bundles[name]["gmacs"]["backbone"] for name in names)}
        for size, names in of_size.items()
    ]
    heads = sum(bundle["gmacs"]["head"] for bundle in bundles.values())
    cost = {
        "shared": sum(each["gmacs"] for each in passes) + heads,
        "separate": sum(bundle["gmacs"]["backbone"] for bundle in bundles.values()) + heads,
    }
    head_models = [model for _, model in models.values()]
    fp32 = _shared_and_separate(_num_bytes(backbone), [_num_bytes(model) for model in head_models])
    parameters = _shared_and_separate(_count(backbone), [_count(model) for model in head_models])
    backbone.set_precision(torch.bfloat16)
    bf16 = _shared_and_separate(_num_bytes(backbone), [_num_bytes(model) for model in head_models])
    return {
        "backbone": backbone.name,
        "bundles": bundles,
        "passes": passes,
        "parameters": parameters,
        "bytes": {"fp32": fp32, "bf16": bf16},
        "gmacs": cost,
        "time_bound": cost["separate"] / cost["shared"],
    }


def _alone(sharer: Sharer, backbone: Backbone, model: TaskModel) -> dict[str, Any]:
    image_BCHW = torch.empty(1, 3, *sharer.size, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(image_BCHW, model.request)
    frozen = counter.get_total_flops() / 2e9
    total = gmacs(
        sharer.config,
        sharer.size,
        num_classes=sharer.num_classes,
        description=sharer.description,
        used_layers=sharer.used_layers,
    )["total"]
    return {
        "size": list(sharer.size),
        "parameters": _count(model),
        "gmacs": {"backbone": frozen, "head": total - frozen},
    }


def _ungated(sharer: Sharer) -> TrainConfig[Any]:
    """The configuration with the layers of a gate fixed; of one that is not trained, the last, which cost most."""
    config, split = sharer.config, sharer.config.split
    if split.selection != "gate":
        return config
    if sharer.used_layers is None:
        return replace(config, split=replace(split, selection="last"))
    # As many maps as the gate mixes, so that the head has its size; the last one decides how far the backbone runs.
    end = max(sharer.used_layers) + 1
    layers = tuple(range(end - split.num_prior_layers, end))
    return replace(config, split=replace(split, selection="explicit", prior_layers=layers))


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


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _num_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
