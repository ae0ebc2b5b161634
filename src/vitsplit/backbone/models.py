"""Creates the timm model of a backbone: the trunk only, for images of any size."""

from __future__ import annotations

import difflib
from functools import partial
from typing import Any

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models import get_pretrained_cfg, is_model, is_model_in_modules, list_models
from torch import nn

from vitsplit.backbone.catalog import CATALOG
from vitsplit.errors import ConfigError

# timm modules of plain, rotary and SAM vision transformers.
_MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_sam")
# Activations of catalog entries that differ from timm's definition, by timm's names.
_ACTIVATIONS = {"gelu-tanh": "gelu_tanh", "quick-gelu": "quick_gelu"}


def timm_name_of(name: str) -> str:
    """Resolves a short name or a timm name to a timm name with the tag of its weights.

    Raises:
        ConfigError: The name is unknown, or not a plain, rotary or SAM vision transformer; the message lists similar
            names.
    """
    if name in CATALOG:
        return CATALOG[name].timm_name
    architecture, _, tag = name.partition(".")
    if not is_model(architecture) or (tag and name not in list_models(f"{architecture}.*", pretrained=True)):
        known = [*CATALOG, *(model for module in _MODULES for model in list_models(module=module, pretrained=True))]
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"Similar names: {', '.join(close)}. " if close else ""
        raise ConfigError(
            f"Unknown backbone '{name}'. {hint}`vitsplit backbones` lists the short names; timm names of plain, "
            "EVA-02, DINOv3 and SAM ViTs work too."
        )
    if not is_model_in_modules(architecture, _MODULES):
        raise ConfigError(
            f"'{name}' is not a plain, rotary (EVA-02, DINOv3) or SAM vision transformer. `vitsplit backbones` lists "
            "supported models."
        )
    config = get_pretrained_cfg(name)
    return f"{architecture}.{config.tag}" if config and config.tag else name


def build_model(name: str, **overrides: Any) -> Any:
    """Creates the timm model of a backbone: embeddings, blocks and final norm.

    The classifier, SigLIP's attention pool and SAM's neck are omitted, so parameter counts are those of the frozen
    trunk. timm's models have no DINOv2 mask token either: the released ``dinov2_vits14`` has 22,056,576 parameters with
    it, this model 22,056,192 (D fewer; likewise B, L and G).

    Args:
        name: A short name or a timm name.
        overrides: Arguments passed to the timm class (``depth``, ``img_size``, ...).

    Returns:
        A ``VisionTransformer``, ``Eva`` or ``VisionTransformerSAM`` in eval mode with random weights.

    Raises:
        ConfigError: As ``timm_name_of``, or the patch embedding is not a single convolution.
    """
    timm_name = timm_name_of(name)
    is_sam = is_model_in_modules(timm_name.partition(".")[0], ("vision_transformer_sam",))
    # The SAM release uses eps=1e-6, timm's definition PyTorch's 1e-5. Features differ by 7e-6 (relative), so older
    # bundles remain valid.
    options: dict[str, Any] = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)} if is_sam else {"dynamic_img_size": True}
    activation = activation_override(name)
    if activation is not None:
        options["act_layer"] = _ACTIVATIONS[activation]
    model: Any = timm.create_model(timm_name, num_classes=0, **(options | overrides))
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ConfigError(f"'{name}': patch embedding {type(model.patch_embed).__name__} is not supported.")
    if is_sam:
        model.neck = nn.Identity()
    else:
        model.attn_pool = None
        if not isinstance(model.norm, nn.Identity):
            model.fc_norm = nn.Identity()
    return model.eval()


def activation_override(name: str) -> str | None:
    """The activation of the published weights if it differs from timm's definition, else None."""
    activation = CATALOG[name].activation if name in CATALOG else ""
    return activation if activation in _ACTIVATIONS else None


def license_of(name: str) -> str:
    """The license of a backbone's weights, as stated in the catalog or by timm."""
    if name in CATALOG:
        return CATALOG[name].license
    config = get_pretrained_cfg(timm_name_of(name))
    return (config.license if config else None) or "not stated by timm: see the model's page"


def repository_of(name: str) -> str | None:
    """The repository of a backbone's weights on the hub, according to timm; None: there is none."""
    timm_name = timm_name_of(name)
    if name in CATALOG and "." not in timm_name:  # timm's repository has other weights
        return None
    config = get_pretrained_cfg(timm_name)
    return config.hf_hub_id if config else None
