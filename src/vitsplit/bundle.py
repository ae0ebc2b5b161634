"""A head bundle: what was trained for one task, as a small folder that needs its backbone to run.

::

    head.safetensors   trainable weights and norm statistics, nothing of the backbone
    head.json          the card: task, classes, backbone with hash and licence, configuration, metrics, version
    README.md          the same for people

No pickle anywhere. Loading compares the backbone's hash with the one the bundle was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitsplit import __version__
from vitsplit.backbone.frozen import Backbone
from vitsplit.errors import BundleError, ConfigError
from vitsplit.tasks import TASKS, config_type, task_name
from vitsplit.tasks.base import Task
from vitsplit.tasks.model import TaskModel
from vitsplit.training.config import TrainConfig
from vitsplit.training.serialise import from_dict, json_text, to_dict

FORMAT = 1
WEIGHTS, CARD, README = "head.safetensors", "head.json", "README.md"


@dataclass(frozen=True)
class Card:
    """What ``head.json`` says.

    Attributes:
        task: Name of the task.
        config: The resolved configuration of the run.
        description: What the task needs to be used without data (``Task.describe``).
        backbone: ``name``, ``title``, ``timm_name``, ``licence``, ``source``, ``weights_hash``.
        prior_layers: Blocks (0-based) that the bundle reads at inference.
        metrics: Figures reached on the validation images, and the step.
        version: Version of vitsplit that wrote it.
    """

    task: str
    config: TrainConfig[Any]
    description: Mapping[str, Any]
    backbone: Mapping[str, str]
    prior_layers: tuple[int, ...]
    metrics: Mapping[str, Any]
    version: str

    @property
    def backbone_title(self) -> str:
        """The backbone's name for people, which says where its patch size is not its own."""
        # Bundles from before backbones could be resampled have no title.
        return self.backbone.get("title", self.backbone["name"])


def save_bundle(
    folder: Path,
    *,
    config: TrainConfig[Any],
    task: Task,
    backbone: Backbone,
    model: TaskModel,
    metrics: Mapping[str, Any],
) -> None:
    """Writes a bundle into ``folder``; ``config.loop.bundle_precision`` may round its matrices to bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.trainable_state()
    if config.loop.bundle_precision == "bf16":
        # Not the gate's scores: which layers they keep hangs on differences that bf16 would round away.
        state = {
            name: tensor if tensor.dim() < 2 or name.endswith("gate.scores_LJ") else tensor.bfloat16()
            for name, tensor in state.items()
        }
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    was_training = model.training
    layers = sorted(model.eval().head.request.maps | model.head.request.raw_maps)
    model.train(was_training)
    info = backbone.info
    card = {
        "format": FORMAT,
        "vitsplit": __version__,
        "task": task_name(config),
        "backbone": {
            "name": info.name,
            "title": info.title,
            "timm_name": info.timm_name,
            "licence": info.licence,
            "source": info.source,
            "weights_hash": info.weights_hash,
        },
        "prior_layers": layers,
        "description": task.describe(),
        "metrics": dict(metrics),
        "config": to_dict(config),
    }
    (folder / CARD).write_text(json_text(card, indent=2) + "\n", encoding="utf-8")
    (folder / README).write_text(_readme(card, state), encoding="utf-8")


def _readme(card: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    backbone = card["backbone"]
    figures = {key: value for key, value in card["metrics"].items() if isinstance(value, float | int)}
    numbers = sum(tensor.numel() for tensor in state.values())
    reached = ", ".join(f"{key} {value:.4g}" for key, value in figures.items()) or "not evaluated"
    return (
        f"# A {card['task']} head for {backbone['title']}\n\n"
        f"Written by vitsplit {card['vitsplit']}. It holds {numbers:,} numbers and runs on the "
        f"frozen backbone `{backbone['title']}` (`{backbone['timm_name']}`, weights {backbone['weights_hash'][:12]}, "
        f"licence {backbone['licence']}).{_origin(state)}\n\n"
        f"- method: {card['config']['method']}, recipe `{card['config']['name']}`\n"
        f"- on the validation images: {reached}\n\n"
        "```\nvitsplit predict THIS_FOLDER image.jpg --out predictions\n```\n"
    )


def _origin(state: Mapping[str, Tensor]) -> str:
    """What of a bundle's weights began as the backbone's, in words."""
    if any(name.startswith("head.task_head.blocks.") for name in state):
        what = "The task head is a trained copy of the backbone's last blocks"
    elif any(name.endswith("trunk.model.patch_embed.proj.weight") for name in state):
        what = "Most of it is a trained copy of the backbone"
    else:
        return ""
    return f" {what}: the backbone's licence governs it too."


def find_bundle(path: str | Path) -> Path:
    """The one bundle folder that a RUN means, see ``find_bundles``.

    Raises:
        BundleError: There is none, or several, as in a joint run; the message names them.
    """
    folders = find_bundles(path)
    if len(folders) > 1:
        named = ", ".join(map(str, folders))
        raise BundleError(f"{path}: there are {len(folders)} head bundles here. Name one of them: {named}.")
    return folders[0]


def find_bundles(path: str | Path) -> list[Path]:
    """The bundle folders that a RUN means: a bundle itself, a run folder's best (else last), or all of a joint run's.

    Raises:
        BundleError: There is none.
    """
    path = Path(path)
    for folder in (path, path / "best", path / "last"):
        if (folder / CARD).is_file():
            return [folder]
        # A joint run has one folder per task in them.
        found = [folder / task for task in TASKS if (folder / task / CARD).is_file()]
        if found:
            return found
    hint = (
        "It holds no finished evaluation yet." if (path / "config.json").is_file() else "Name a run or bundle folder."
    )
    raise BundleError(f"{path}: there is no head bundle here (no {CARD}, best/{CARD} or last/{CARD}). {hint}")


def read_card(path: str | Path) -> Card:
    """The card of a run or bundle, without reading weights.

    Raises:
        BundleError: There is no bundle, or its card is broken or from a newer version.
    """
    file = find_bundle(path) / CARD
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] > FORMAT:
            raise BundleError(f"{file}: written by vitsplit {data['vitsplit']}, which is newer. Update vitsplit.")
        return Card(
            task=data["task"],
            config=from_dict(config_type(data["task"]), data["config"], str(file)),
            description=data["description"],
            backbone=data["backbone"],
            prior_layers=tuple(data["prior_layers"]),
            metrics=data["metrics"],
            version=data["vitsplit"],
        )
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise BundleError(
            f"{file}: not a readable card ({error}). Copy the bundle again from where it was trained."
        ) from error


def check_backbone(card: Card, backbone: Backbone, where: str | Path) -> None:
    """Refuses a backbone that the bundle was not trained on.

    Raises:
        BundleError: Hashes differ; both are named. Or the bundle is of a version that ran the backbone with another
            activation.
    """
    expected, found = card.backbone["weights_hash"], backbone.info.weights_hash
    if expected and expected == backbone.info.former_hash:
        raise BundleError(
            f"{where}: trained by a version of vitsplit that ran {card.backbone_title} with plain GELU, which is not "
            f'its publisher\'s activation. To run it as it was trained, write "{card.backbone["timm_name"]}" for '
            f'"{backbone.info.name}" in config.backbone.backbone of its {CARD}; better, train it again.'
        )
    if expected != found:
        raise BundleError(
            f"{where}: trained on {card.backbone_title} with weights {expected[:16]}, but this is {backbone.name} "
            f"with weights {found[:16]} ({backbone.info.source}). Give it the weights it was trained on."
        )


def load_weights(path: str | Path, model: TaskModel) -> None:
    """Reads a bundle's weights into a model built from its card.

    Raises:
        BundleError: The file is missing, damaged, or of another model.
    """
    state = read_weights(path)
    try:
        model.load_trainable_state(state)
    except (KeyError, RuntimeError) as error:
        raise BundleError(f"{find_bundle(path) / WEIGHTS}: does not fit its card. {error}") from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A bundle's weights by name, float32.

    Raises:
        BundleError: The file is missing or damaged.
    """
    file = find_bundle(path) / WEIGHTS
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{file}: cannot be read ({error}). Copy the bundle again from where it was trained."
        ) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
