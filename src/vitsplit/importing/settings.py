"""The method's settings and the classes of a checkpoint, from its tensors and what is stored with them.

Shapes: D width, K_t copied blocks, K_p prior layers, L layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitsplit.data.classes import ClassList
from vitsplit.errors import ConfigError
from vitsplit.files import shown
from vitsplit.importing.keys import require
from vitsplit.importing.training_config import TrainingConfig
from vitsplit.methods.split.config import SplitConfig

CLASSIFIERS = {
    "segmentation": ("decoder.classify.bias", 0),
    "detection": ("decoder.roi_heads.box_predictor.cls_score.bias", 1),
}
"""Task to the bias of the class scores, and how many of them are of no class."""
MASK_HEAD = "decoder.roi_heads.mask_head."
_BLOCK = re.compile(r"head\.task_head\.blocks\.(\d+)\.")
_REDUCE = "head.prior_head.block.reduce.weight"
_GATE = "head.gate.scores_LJ"


def split_settings(
    found: Mapping[str, Tensor],
    num_layers: int,
    config: TrainingConfig,
    prior_layers: Sequence[int] | None,
    source: str,
) -> SplitConfig:
    """The settings of ViT-Split: K_t and K_p from the tensors, layers from the configuration or as given.

    Args:
        found: Tensors by the names of a bundle.
        num_layers: L.
        config: The configuration in the checkpoint.
        prior_layers: Indices of the prior layers (0-based) if the configuration has none.
        source: The file, for messages.

    Raises:
        ConfigError: The prior layers are unknown, or their number is not K_p; or the copied blocks are not the last.
        WeightsError: The tensor that has K_p is missing.
    """
    num_tuned = len({match[1] for name in found if (match := _BLOCK.match(name))})
    _check_copied(config, num_layers, num_tuned, source)
    if _GATE in found:
        require(found, {_GATE: 2}, source)
        if prior_layers is not None:
            raise ConfigError(f"--prior-layers: the gate of {source} chooses the layers. Omit it.")
        return SplitConfig(num_tuned_layers=num_tuned, num_prior_layers=found[_GATE].shape[1], selection="gate")
    require(found, {_REDUCE: 4}, source)
    width, channels = max(1, found[_REDUCE].shape[0]), found[_REDUCE].shape[1]
    recorded = config.whole_numbers("model.backbone.out_indices")
    # DINOv2's code returns layers in the order of the blocks, whatever the order of the indices.
    layers = _sorted(recorded if prior_layers is None else prior_layers)
    if layers is None:
        raise ConfigError(
            f"{source}: which layers the prior head reads is not recorded (no out_indices in meta.config). Give the "
            "configuration that it was trained with, with --config, or only the "
            f"{channels // width} indices with --prior-layers, such as --prior-layers 2 5 8 11."
        )
    if recorded is not None and _sorted(recorded) != layers:
        raise ConfigError(
            f"--prior-layers {' '.join(map(str, layers))}: {source} was trained with out_indices {[*recorded]}. "
            "Omit it."
        )
    if len(layers) * width != channels:
        raise ConfigError(
            f"{source}: its prior head reads {channels // width} layers, but {len(layers)} are given ({[*layers]}). "
            "Correct --prior-layers."
        )
    return SplitConfig(
        num_tuned_layers=num_tuned, num_prior_layers=len(layers), selection="explicit", prior_layers=layers
    )


def _sorted(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(sorted(layers))


def _check_copied(config: TrainingConfig, num_layers: int, num_tuned: int, source: str) -> None:
    copied = config.whole_numbers("model.backbone.select_layers")
    if copied is not None and copied != tuple(range(num_layers - num_tuned, num_layers)):
        raise ConfigError(
            f"{source}: its task head copies the blocks {[*copied]}. Only copies of the last blocks can be imported."
        )


def recorded_classes(meta: Mapping[str, Any], count: int, source: str) -> ClassList:
    """Names and colors of the classes that a checkpoint records.

    Raises:
        ConfigError: There are no names, or not as many as the decoder has classes.
        DataError: A name is invalid.
    """
    names, palette = meta.get("CLASSES"), meta.get("PALETTE")
    if not isinstance(names, list | tuple) or len(names) != count or not all(isinstance(each, str) for each in names):
        raise ConfigError(
            f"{source}: its decoder has {count} classes, but CLASSES in its meta is {shown(names)}. Give the names "
            "with --classes classes.json."
        )
    colors = [each for each in palette if _is_color(each)] if isinstance(palette, list | tuple) else []
    return ClassList(tuple(names), tuple(map(tuple, colors)) if len(colors) == count else ())


def _is_color(value: Any) -> bool:
    is_triple = isinstance(value, list | tuple) and len(value) == 3
    return is_triple and all(type(part) is int and 0 <= part <= 255 for part in value)
