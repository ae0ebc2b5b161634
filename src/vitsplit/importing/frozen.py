"""The frozen model of a checkpoint: compared with the catalog's, never used."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.catalog import CATALOG
from vitsplit.backbone.conversion import to_timm
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.importing.keys import listed

RESAMPLED = ("patch_embed.proj.weight", "pos_embed")


def backbone_name(frozen: Mapping[str, Tensor], source: str) -> str:
    """The DINOv2 of the catalog that a checkpoint was trained on, by width, depth and registers.

    Args:
        frozen: Tensors by DINOv2's names, with ``cls_token`` of one or more dimensions.
        source: The file, for messages.

    Raises:
        ConfigError: There is none of this size.
    """
    blocks = {match[1] for name in frozen if (match := re.match(r"blocks\.(\d+)\.", name))}
    width = frozen["cls_token"].shape[-1]
    kind = r"dinov2-\w+-reg" if "register_tokens" in frozen else r"dinov2-\w+"
    for name, spec in CATALOG.items():
        if re.fullmatch(kind, name) and (spec.width, spec.num_layers) == (width, len(blocks)):
            return name
    raise ConfigError(
        f"{source}: its frozen model of {len(blocks)} blocks of width {width} is no DINOv2 of the catalog. Give the "
        "model with --backbone, and its weights with --weights."
    )


def check_frozen(frozen: Mapping[str, Tensor], backbone: Backbone, source: str, *, resampled: bool) -> None:
    """Compares the tensors of a checkpoint's frozen model with those of the backbone.

    Tensor by tensor rather than by one hash, to name those that differ, and because resampling rounds differently on
    other machines: resampled tensors may differ by 1e-4 of their largest value. Tensors in bfloat16 or float16, as the
    release's LLaVA writes them, must equal the backbone's after rounding.

    Args:
        frozen: Tensors by DINOv2's names.
        backbone: The backbone of the bundle.
        source: The file, for messages.
        resampled: Whether the backbone runs at another patch size than its own.

    Raises:
        WeightsError: Tensors differ or are missing; the message lists them.
    """
    model = backbone.model
    num_positions = model.pos_embed.shape[1] + ("register_tokens" in frozen)  # timm's models have none for the class
    shapes = {
        "cls_token": (1, 1, backbone.width),
        "pos_embed": (1, num_positions, backbone.width),
        "patch_embed.proj.weight": tuple(model.patch_embed.proj.weight.shape),
    }
    # timm would resample tensors of other sizes.
    differing = [name for name, shape in shapes.items() if name not in frozen or tuple(frozen[name].shape) != shape]
    if not differing:
        found = to_timm(model, dict(frozen))
        known = dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
        differing = sorted(found.keys() - known)
        for name, tensor in model.named_parameters():
            other = found.get(name)
            limit = 1e-4 * tensor.abs().max().item() if resampled and name in RESAMPLED else 0.0
            if other is None or other.shape != tensor.shape or _distance(other, tensor) > limit:
                differing.append(name)
    if differing:
        raise WeightsError(
            f"{source}: its frozen model is not {backbone.name} with weights {backbone.info.weights_hash[:16]} "
            f"({backbone.info.source}): {listed(differing)} differ. Give the model with --backbone and its weights "
            "with --weights. A checkpoint whose backbone was tuned cannot be imported."
        )


def _distance(found: Tensor, own: Tensor) -> float:
    """The largest difference, after rounding to the precision of ``found``; infinite below 16 bits."""
    if not found.is_floating_point() or found.element_size() < 2:
        return torch.inf
    difference = found.float() - own.to(found.dtype).float()
    return torch.nan_to_num(difference.abs().max(), nan=torch.inf).item()
