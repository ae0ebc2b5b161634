"""Heads from checkpoints of mmseg, mmdet and the depth toolbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vitsplit.backbone import open_backbone
from vitsplit.backbone.config import BackboneConfig
from vitsplit.data.classes import read_classes
from vitsplit.data.public_classes import COCO, COCO_IDS
from vitsplit.errors import ConfigError
from vitsplit.importing import keys
from vitsplit.importing.built import Built
from vitsplit.importing.frozen import backbone_name, check_frozen
from vitsplit.importing.settings import CLASSIFIERS, MASK_HEAD, recorded_classes, split_settings
from vitsplit.importing.task_settings import task_settings
from vitsplit.importing.training_config import training_config
from vitsplit.model import build_head, head_shapes
from vitsplit.tasks import bare_task
from vitsplit.train_config import LoopConfig, one_head

FROZEN = "backbone.backbone."
"""Prefix of the frozen model's tensors."""
_FROZEN_DIMENSIONS = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4}


def build_openmmlab(
    task_name: str,
    state: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    source: str,
    *,
    config: str | Path | None,
    prior_layers: Sequence[int] | None,
    classes: str | Path | None,
    backbone: str | None,
    weights: str | Path | None,
) -> Built:
    """The head of a checkpoint.

    Args:
        task_name: The task.
        state: The checkpoint's tensors.
        meta: What mmcv stores with them.
        source: The file, for messages.
        config: See ``import_checkpoint``; also the following.
        prior_layers: Indices of the prior layers.
        classes: Names of classes.
        backbone: Name of the backbone.
        weights: Weights of the backbone.

    Raises:
        WeightsError: As ``import_checkpoint``.
        ConfigError: As ``import_checkpoint``.
    """
    keys.require(state, {f"{FROZEN}{name}": count for name, count in _FROZEN_DIMENSIONS.items()}, source)
    frozen = {name.removeprefix(FROZEN): value for name, value in state.items() if name.startswith(FROZEN)}
    trained = {name: value for name, value in state.items() if not name.startswith(FROZEN)}
    found, left_over = keys.renamed(trained, keys.TABLES[task_name])
    settings = BackboneConfig(
        backbone=backbone or backbone_name(frozen, source),
        weights=None if weights is None else str(weights),
        position_resample="release",
        **(_patches(frozen) if task_name == "detection" else {}),
    )
    recorded = training_config(meta.get("config"), config, source)
    num_layers = open_backbone(settings, only_shapes=True).num_layers
    imported = one_head(
        name="imported",
        task=task_settings(task_name, recorded, found, source),
        backbone=settings,
        method=split_settings(found, num_layers, recorded, prior_layers, source),
        loop=LoopConfig(precision="fp32"),
    )
    description = _description(task_name, found, meta, classes, source)
    keys.check(found, left_over, head_shapes(imported, description).trainable_state(), source)
    model = open_backbone(settings)
    check_frozen(frozen, model, source, resampled=settings.patch_size is not None)
    task = bare_task(imported.task, description)
    head = build_head(imported, model, task)
    head.load_trainable_state(found)
    return Built(imported, task, model, head)


def _patches(frozen: Mapping[str, Tensor]) -> dict[str, Any]:
    """The patch size of a detector's frozen model, to which the release resamples DINOv2."""
    return {"patch_size": frozen["patch_embed.proj.weight"].shape[-1], "patch_resample": "release"}


def _description(
    task: str, found: Mapping[str, Tensor], meta: Mapping[str, Any], classes: str | Path | None, source: str
) -> dict[str, Any]:
    """What ``bare_task`` needs: names and colors of the classes, if the task has any."""
    if task not in CLASSIFIERS:
        if classes is not None:
            raise ConfigError(f"--classes {classes}: {task} has no classes. Omit it.")
        return {}
    name, others = CLASSIFIERS[task]
    keys.require(found, {name: 1}, source)
    count = len(found[name]) - others
    if classes is not None:
        named = read_classes(classes).classes
        if len(named) != count:
            raise ConfigError(f"--classes {classes} has {len(named)} names, but {source} has {count} classes.")
    else:
        named = recorded_classes(meta, count, source)
    described = {"classes": list(named.names), "colours": [list(color) for color in named.colors]}
    if task == "detection":
        described["masks"] = any(name.startswith(MASK_HEAD) for name in found)
        if named.names == COCO:
            described["category_ids"] = list(COCO_IDS)
    return described
