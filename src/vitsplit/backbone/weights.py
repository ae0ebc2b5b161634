"""Backbones with their weights: from a file, the hub's cache, the hub or a registry package, never from elsewhere."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from vitsplit.backbone import checkpoint, focus, hub
from vitsplit.backbone.build import build_model, licence_of, own_activation, timm_name_of
from vitsplit.backbone.catalog import FOCUS
from vitsplit.backbone.families import PositionResample, position_rule
from vitsplit.backbone.frozen import Backbone, BackboneInfo
from vitsplit.backbone.naming import StateDict
from vitsplit.backbone.patches import Resample, other_patch_size, set_patch_size
from vitsplit.engine.config import BackboneConfig
from vitsplit.errors import ConfigError, WeightsError

RANDOM_WEIGHTS = "random weights"
_log = logging.getLogger("vitsplit")


def open_backbone(
    config: BackboneConfig,
    *,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    only_shapes: bool = False,
) -> Backbone:
    """The backbone that a configuration names.

    Args:
        config: Name, weights, patch size, rule for positions.
        weights: File or folder of weights in place of the configuration's.
        device: Where the tensors go; the CPU by default.
        only_shapes: Without memory for weights, on the meta device (``meta_backbone``).

    Raises:
        ConfigError: There is no such backbone, or it cannot be run at the patch size.
        WeightsError: The weights cannot be had, read or recognised.
    """
    if only_shapes:
        return meta_backbone(
            config.backbone,
            patch_size=config.patch_size,
            patch_resample=config.patch_resample,
            position_resample=config.position_resample,
        )
    return load_backbone(
        config.backbone,
        weights=weights or config.weights,
        random_weights=config.random_weights,
        patch_size=config.patch_size,
        patch_resample=config.patch_resample,
        position_resample=config.position_resample,
        device=device,
    )


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    patch_size: int | None = None,
    patch_resample: Resample = "2d",
    position_resample: PositionResample = "timm",
    device: torch.device | str | None = None,
) -> Backbone:
    """Loads a frozen backbone with its pretrained weights.

    Args:
        name: A short name (``vitsplit backbones`` lists them) or the timm name of a plain, EVA-02, DINOv3 or SAM ViT.
        weights: A safetensors or torch file, or a folder with one, in the naming of timm, of the original release or
            (DINOv2) of transformers. Without it: the local hub cache, then the hub; ``dinov2-small-focus`` comes from
            a registry package.
        random_weights: Seeded random weights instead, the same each time; good for testing the machinery only.
        patch_size: Pixels per side of a patch; None: the model's own.
        patch_resample: How the weights are resampled to another patch size, see ``set_patch_size``.
        position_resample: How positions are resampled to other image sizes: as timm does, or as the release
            (``PlainViTWithReleasePositions``).
        device: Where the tensors go; the CPU by default.

    Returns:
        The backbone in float32, with the hash of its tensors in ``info.weights_hash``.

    Raises:
        ConfigError: There is no such backbone, it cannot be run at this patch size, or both ``weights`` and
            ``random_weights`` are given.
        WeightsError: The weights cannot be had, read or recognised; says what was tried and the ways out.
    """
    timm_name = timm_name_of(name)
    if random_weights and weights is not None:
        raise ConfigError(f"Both a weights file ({weights}) and random weights were asked for: choose one.")
    if random_weights:
        model, source = _random_model(name), RANDOM_WEIGHTS
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        _log.warning("backbone %s: random weights, which test the machinery and nothing else", name)
    else:
        # Parameters without memory: they are replaced at once, and initialising a large model takes seconds.
        with init_empty_weights(include_buffers=False):
            model = build_model(name)
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        state, file, source = _find(name, timm_name, weights)
        checkpoint.fill(model, state, str(file))
        _log.info("backbone %s: weights from %s (%s), licence %s", name, source, file, licence_of(name))
    tensors_hash = checkpoint.weights_hash(model)
    changes.apply(model)
    if changes.title:
        _log.info("backbone %s: resampled to %s", name, changes.title)
    return _wrap(name, model, source, tensors_hash, changes).to(device)


def meta_backbone(
    name: str,
    *,
    patch_size: int | None = None,
    patch_resample: Resample = "2d",
    position_resample: PositionResample = "timm",
) -> Backbone:
    """A backbone without memory for its weights, to count parameters and multiply-adds with; its hash is ''.

    Raises:
        ConfigError: There is no such backbone, or it cannot be run at this patch size.
    """
    with torch.device("meta"):
        model = build_model(name)
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        changes.apply(model)
        return _wrap(name, model, "no weights, only shapes", "", changes)


@dataclass(frozen=True)
class _Changes:
    """What is done to a model as it was trained: another patch size, another rule for positions."""

    patch_size: int | None
    patch_resample: Resample
    positions: PositionResample

    def apply(self, model: Any) -> None:
        if self.patch_size is not None:
            set_patch_size(model, self.patch_size, self.patch_resample)

    @property
    def title(self) -> str:
        parts = [] if self.patch_size is None else [f"patch {self.patch_size}"]
        if self.patch_size is not None and self.patch_resample != "2d":
            parts.append(self.patch_resample)
        if self.positions != "timm":
            parts.append(f"positions {self.positions}")
        return ", ".join(parts)

    def hash(self, weights_hash: str) -> str:
        """Made from what was resampled and how, and not from the result.

        A pseudo-inverse differs in the last bit between CPUs, which would make the same backbone another one on another
        machine.
        """
        if self.patch_size is not None:
            weights_hash = _derived(weights_hash, f"at patch size {self.patch_size}, {self.patch_resample}")
        return weights_hash if self.positions == "timm" else _derived(weights_hash, f"with positions {self.positions}")


def _changes(
    model: Any, name: str, patch_size: int | None, patch_resample: Resample, position_resample: PositionResample
) -> _Changes:
    other = other_patch_size(model, name, patch_size, patch_resample)
    return _Changes(other, patch_resample, position_rule(model, name, position_resample))


def _derived(weights_hash: str, change: str) -> str:
    return hashlib.sha256(f"{weights_hash} {change}\n".encode()).hexdigest()


def _random_model(name: str) -> Any:
    # timm's own initialisation, apart from the global random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name)


def _wrap(name: str, model: Any, source: str, tensors_hash: str, changes: _Changes) -> Backbone:
    config = model.pretrained_cfg
    weights_hash, former_hash = "", ""
    if tensors_hash:
        weights_hash = changes.hash(tensors_hash)
        activation = own_activation(name)
        if activation is not None:
            # The tensors alone would not tell such a backbone from what earlier versions made of them.
            former_hash, weights_hash = weights_hash, changes.hash(_derived(tensors_hash, f"with {activation}"))
    info = BackboneInfo(
        name=name,
        timm_name=timm_name_of(name),
        licence=licence_of(name),
        source=source,
        weights_hash=weights_hash,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resampled=changes.title,
        former_hash=former_hash,
    )
    return Backbone(model, info, changes.positions)


def _find(name: str, timm_name: str, weights: str | Path | None) -> tuple[StateDict, Path, str]:
    """The tensors, their file, and where they came from in words that mean something on another machine."""
    if weights is not None:
        file = checkpoint.find_file(Path(weights).expanduser())
        return checkpoint.read(file), file, f"the file {file.name}"
    if name == FOCUS:
        state, file = focus.load_state()
        return state, file, focus.PACKAGE.source
    config = get_pretrained_cfg(timm_name)
    repository = config.hf_hub_id if config else None
    if not repository:
        raise WeightsError(f"timm knows no hub repository with weights for '{name}': pass a file as --weights FILE.")
    try:
        file = hub.fetch(repository)
    except hub.HubUnavailableError as error:
        raise hub.HubUnavailableError(_ways_out(name, repository, str(error))) from error
    return checkpoint.read(file), file, f"{repository} on the hub"


def cached_weights(name: str) -> Path | None:
    """The pretrained weights of a timm name that lie in the hub's cache on this disk; None: there are none.

    Raises:
        ConfigError: There is no such backbone.
    """
    config = get_pretrained_cfg(timm_name_of(name))
    return hub.cached_file(config.hf_hub_id) if config and config.hf_hub_id else None


def _ways_out(name: str, repository: str, tried: str) -> str:
    return (
        f"There are no weights for '{name}': {tried}. Ways out:\n"
        f"  - elsewhere, download model.safetensors of {constants.ENDPOINT}/{repository}; pass --weights FILE;\n"
        "  - set HF_HOME to a hub cache that holds them, or HF_ENDPOINT to a mirror that can be reached;\n"
        f"  - choose --backbone {FOCUS}: another model with real weights, from the Python package index;\n"
        "  - to test the machinery only: --random-weights (random_weights=True)."
    )
