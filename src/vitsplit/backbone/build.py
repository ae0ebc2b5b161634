"""Names to timm models: the trunk alone, for images of any size."""

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

# timm's modules whose models are plain, rotary or SAM vision transformers.
_MODULES = ("vision_transformer", "deit", "eva", "vision_transformer_sam")
# Activations that a catalog entry has in place of the one in timm's definition, as timm calls them.
_ACTIVATIONS = {"gelu-tanh": "gelu_tanh", "quick-gelu": "quick_gelu"}


def timm_name_of(name: str) -> str:
    """The timm model behind a short name or a timm name, checked, with the tag of its weights.

    Raises:
        ConfigError: Nothing has this name, or it is no plain, rotary or SAM vision transformer; says what is close.
    """
    if name in CATALOG:
        return CATALOG[name].timm_name
    architecture, _, tag = name.partition(".")
    if not is_model(architecture) or (tag and name not in list_models(f"{architecture}.*", pretrained=True)):
        known = [*CATALOG, *(model for module in _MODULES for model in list_models(module=module, pretrained=True))]
        close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
        hint = f"Close to it: {', '.join(close)}. " if close else ""
        raise ConfigError(
            f"There is no backbone '{name}'. {hint}"
            "`vitsplit backbones` lists the short names; any timm name of a plain, EVA-02, DINOv3 or SAM ViT works too."
        )
    if not is_model_in_modules(architecture, _MODULES):
        raise ConfigError(
            f"'{name}' is no plain, rotary (EVA-02, DINOv3) or SAM vision transformer. "
            "`vitsplit backbones` lists models that work."
        )
    config = get_pretrained_cfg(name)
    return f"{architecture}.{config.tag}" if config and config.tag else name


def build_model(name: str, **overrides: Any) -> Any:
    """The timm model of a backbone as it is used here: embeddings, blocks and final norm.

    The classifier, SigLIP's attention pool and SAM's neck are left out, so that parameter counts are those of the
    frozen trunk. DINOv2's mask token is not there either, because timm's models have none: the released
    ``dinov2_vits14`` counts 22,056,576 parameters with it, this one 22,056,192 (D fewer; likewise B, L and G).

    Args:
        name: A short name or a timm name.
        overrides: Arguments of the timm class in place of the named model's (``depth``, ``img_size``, ...).

    Returns:
        A ``VisionTransformer``, ``Eva`` or ``VisionTransformerSAM`` in eval mode with freshly initialised weights.

    Raises:
        ConfigError: As ``timm_name_of``, or the patch embedding is not one convolution.
    """
    timm_name = timm_name_of(name)
    is_sam = is_model_in_modules(timm_name.partition(".")[0], ("vision_transformer_sam",))
    # SAM's norms have 1e-6 in the release; timm's definition leaves PyTorch's 1e-5. Features differ by 7e-6 (relative),
    # so that bundles from before are served as they are.
    options: dict[str, Any] = {"norm_layer": partial(nn.LayerNorm, eps=1e-6)} if is_sam else {"dynamic_img_size": True}
    activation = own_activation(name)
    if activation is not None:
        options["act_layer"] = _ACTIVATIONS[activation]
    model: Any = timm.create_model(timm_name, num_classes=0, **(options | overrides))
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ConfigError(f"'{name}' embeds its patches with a {type(model.patch_embed).__name__}: not supported.")
    if is_sam:
        model.neck = nn.Identity()
    else:
        model.attn_pool = None
        if not isinstance(model.norm, nn.Identity):
            model.fc_norm = nn.Identity()
    return model.eval()


def own_activation(name: str) -> str | None:
    """The activation that an entry of the catalog has because its publisher trained it so; None: timm's, as it is."""
    activation = CATALOG[name].activation if name in CATALOG else ""
    return activation if activation in _ACTIVATIONS else None


def licence_of(name: str) -> str:
    """The licence of a backbone's weights, as the catalogue or timm states it."""
    if name in CATALOG:
        return CATALOG[name].licence
    config = get_pretrained_cfg(timm_name_of(name))
    return (config.license if config else None) or "not stated by timm: see the model's page"
