"""A checkpoint of the authors' release to a bundle."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitsplit.backbone.checkpoint import read_objects
from vitsplit.bundle import save_bundle
from vitsplit.data.new_folder import new_folder
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.importing import keys
from vitsplit.importing.llava import build_llava
from vitsplit.importing.openmmlab import build_openmmlab
from vitsplit.tasks import TaskConfig
from vitsplit.train_config import TrainConfig

logger = logging.getLogger(__name__)

_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALARS = (
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *sorted({type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]}, key=str),
)
"""What numpy's numbers are pickled as, before and since numpy 2: mmcv's ``save_best`` stores the best score as one."""


def import_checkpoint(
    checkpoint: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    prior_layers: Sequence[int] | None = None,
    classes: str | Path | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    language_model: str | None = None,
    language_weights: str | Path | None = None,
) -> Path:
    """Converts a checkpoint of the authors' release to a bundle, which predicts as the release does.

    Task, K_t, K_p, number of classes and size of the backbone are read from the tensors; names of classes, prior layers
    and sizes of test images from what mmcv stores with them (``meta``), the latter two also from ``config``. No code in
    the files is executed. The frozen model is not taken from the checkpoint, only compared with the backbone.

    Args:
        checkpoint: A ``.pth`` file of mmseg (segmentation), the depth toolbox or mmdet (detection); of LLaVA,
            ``mm_projector.bin``, or the folder of the second stage.
        out: The bundle's folder; must be empty or missing.
        config: The configuration of the training, if the checkpoint records none (``meta.config``), as those for
            segmentation: the file that mmcv's ``Config.dump`` writes, or the log of the training. Not executed.
        prior_layers: Indices of the prior layers (0-based), if neither records ``out_indices``.
        classes: A ``classes.json`` with the names of the classes, if the checkpoint does not record them.
        backbone: The frozen model; None: the DINOv2 of the checkpoint's size, or LLaVA's CLIP.
        weights: Weights of the backbone; None: the hub cache, then the hub.
        language_model: Of LLaVA, the language model that training started from, by name or folder; None: the Vicuna
            of the checkpoint's width.
        language_weights: Its folder; None: the hub cache, then the hub.

    Returns:
        ``out``.

    Raises:
        WeightsError: The file is unreadable or contains code; tensors are missing or left over (the message lists
            them); or the frozen model is another one.
        ConfigError: A setting is not recorded and not given, or bundles do not have it.
        DataError: ``out`` is not empty.

    Example:
        >>> vitsplit.import_checkpoint(
        ...     "iter_40000.pth", out="bundles/ade20k", config="20241028_101500.log"
        ... )  # doctest: +SKIP
    """
    source = str(checkpoint)
    with new_folder(Path(out)) as folder:
        state, meta = _read(Path(checkpoint))
        task_name = keys.task_of(state, source)
        mmlab: dict[str, Any] = {"config": config, "prior_layers": prior_layers, "classes": classes}
        language: dict[str, Any] = {"language_model": language_model, "language_weights": language_weights}
        _check_flags(task_name, mmlab if task_name == "vqa" else language)
        model: dict[str, Any] = {"backbone": backbone, "weights": weights}
        if task_name == "vqa":
            built = build_llava(state, source, **model, **language)
        else:
            built = build_openmmlab(task_name, state, meta, source, **model, **mmlab)
        save_bundle(folder, config=built.config, task=built.task, backbone=built.backbone, head=built.head, metrics={})
    if task_name != "vqa" and config is None and meta.get("config") is None:
        logger.warning(
            "%s records no configuration: predictions use the defaults of the task, %s. Give it with --config.",
            source,
            _test_settings(built.config.task),
        )
    logger.info("%s: a head for %s, %s", source, task_name, _summary(built.config))
    return Path(out)


def _check_flags(task: str, others: Mapping[str, Any]) -> None:
    """Refuses flags of other tasks."""
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to a checkpoint for {task}. Omit it.")


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors and ``meta`` of a file, or the tensors of all files of a model of transformers in a folder."""
    if path.is_dir():
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise WeightsError(
                f"{path}: no model*.safetensors or pytorch_model*.bin. Give the folder of a whole model (merge LoRA "
                "into it first), or a file."
            )
        return _merged({file: _read(file)[0] for file in files}), {}
    if not path.is_file():
        raise WeightsError(f"{path} does not exist. Give the file that training wrote.")
    objects = read_objects(path, allowed=NUMPY_SCALARS)
    state, meta = objects.get("state_dict", objects), objects.get("meta")
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: its state_dict is not a dictionary. Give the file that training wrote.")
    tensors = {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}
    keys.refuse(str(path), unsupported=[name for name, value in tensors.items() if not _is_plain(value)])
    return tensors, meta if isinstance(meta, Mapping) else {}


def _merged(shards: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all files, each of which must be in one file only."""
    found: dict[str, Tensor] = {}
    for file, shard in shards.items():
        if twice := sorted(found.keys() & shard):
            raise WeightsError(
                f"{file}: also in another file of its folder: {keys.listed(twice)}. Remove the files of other models."
            )
        found |= shard
    return found


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has all its numbers in the file: dense, real, and not expanded from fewer numbers."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _summary(config: TrainConfig) -> str:
    """The settings that predictions depend on, in one line."""
    method, task = config.method, config.task
    if task.name == "vqa":
        return f"stage {task.stage}, for {task.language_model}"
    layers = "a gate" if method.selection == "gate" else f"prior layers {' '.join(map(str, method.prior_layers))}"
    return f"K_t {method.num_tuned_layers}, {layers}, {_test_settings(task)}"


def _test_settings(task: TaskConfig) -> str:
    names = ["test_mode", "crop_size", "test_stride", "image_scale", "test_scales", "test_flip", "max_depth"]
    if task.name != "segmentation":
        names.remove("crop_size")
    return ", ".join(f"{name} {getattr(task, name)}" for name in names if hasattr(task, name))
