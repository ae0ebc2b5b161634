"""Heads from the release's LLaVA: ``mm_projector.bin`` of the first stage, or the folder of the second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.backbone.conversion import stacked
from vitsplit.errors import ConfigError
from vitsplit.importing import keys
from vitsplit.importing.built import Built
from vitsplit.importing.frozen import check_frozen
from vitsplit.model import build_head, head_shapes
from vitsplit.recipes import recipe
from vitsplit.tasks import bare_task
from vitsplit.tasks.vqa.language import find_language_model
from vitsplit.tasks.vqa.language_models import LANGUAGE_MODELS
from vitsplit.tasks.vqa.task import VqaTask

FROZEN = "model.vision_tower.vision_tower."
"""Prefix of the frozen CLIP's tensors, which only the second stage writes."""
BACKBONE = "clip-large-336"
LANGUAGE = "decoder.language_model."


def build_llava(
    state: Mapping[str, Tensor],
    source: str,
    *,
    backbone: str | None,
    weights: str | Path | None,
    language_model: str | None,
    language_weights: str | Path | None,
) -> Built:
    """The head of a checkpoint: the connector, and of the second stage the language model.

    Args:
        state: The checkpoint's tensors.
        source: The file or folder, for messages.
        backbone: See ``import_checkpoint``; also the following.
        weights: Weights of the backbone.
        language_model: The language model that training started from.
        language_weights: Its folder.

    Raises:
        WeightsError: As ``import_checkpoint``.
        ConfigError: As ``import_checkpoint``.
    """
    frozen = {name.removeprefix(FROZEN): value for name, value in state.items() if name.startswith(FROZEN)}
    trained = {name: value for name, value in state.items() if not name.startswith(FROZEN)}
    found, left_over = keys.renamed(trained, keys.TABLES["vqa"])
    connector = stacked({name: tensor for name, tensor in found.items() if not name.startswith(LANGUAGE)})
    language = {name: tensor for name, tensor in found.items() if name.startswith(LANGUAGE)}
    width = _language_width(connector, source)
    stage = "instruct" if language else "align"
    base = recipe(f"llava15-7b-{stage}-release")
    settings = BackboneConfig(backbone=backbone or BACKBONE, weights=None if weights is None else str(weights))
    config = base.change(
        name="imported",
        task=replace(
            base.task,
            language_model=language_model or _language_model(width, source),
            language_weights=None if language_weights is None else str(language_weights),
            language_width=width,
        ),
        backbone=settings,
        loop=replace(base.loop, bundle_precision="bf16" if _is_bf16(connector | language) else "fp32"),
    )
    # Of the connector before anything is built; the shapes of a language model are known once it is loaded.
    shapes = head_shapes(config, {}).trainable_state()
    keys.check(connector, left_over, shapes, source)
    model = open_backbone(settings)
    if frozen:
        _check_clip(frozen, model, source)
    task: Any = VqaTask(config.task, find_language_model(config.task))
    # The connector alone does not need the language model in memory.
    head = build_head(config, model, task if stage == "instruct" else bare_task(config.task, {}))
    keys.check(connector | language, (), head.trainable_state(), source)
    head.load_trainable_state(connector | language)
    return Built(config, task, model, head)


def _language_width(found: Mapping[str, Tensor], source: str) -> int:
    name = "head.fusion.reduce.bias"
    keys.require(found, {name: 1}, source)
    return len(found[name])


def _language_model(width: int, source: str) -> str:
    for name, known in LANGUAGE_MODELS.items():
        if known.width == width:
            return name
    raise ConfigError(
        f"{source}: its visual tokens have width {width}. Name the language model that training started from with "
        "--language-model."
    )


def _is_bf16(found: Mapping[str, Tensor]) -> bool:
    return all(tensor.dtype == torch.bfloat16 for tensor in found.values() if tensor.dim() > 1)


def _check_clip(frozen: Mapping[str, Tensor], backbone: Backbone, source: str) -> None:
    """Compares the frozen CLIP, by the names of transformers, with the backbone."""
    found, left_over = keys.renamed(frozen, keys.CLIP)
    keys.refuse(source, left_over=[FROZEN + name for name in left_over])
    for name, extra in (("cls_token", 2), ("pos_embed", 1)):
        if name in found:
            found[name] = found[name][(None,) * extra]
    check_frozen(stacked(found), backbone, source, resampled=False)
