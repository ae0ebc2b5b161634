"""Loading of heads and their backbone from run folders, with all checks before weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from vitsplit.backbone import open_backbone
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.catalog import CATALOG
from vitsplit.backbone.weights import cached_weights
from vitsplit.bundle import (
    CARD,
    LANGUAGE_MODEL,
    Card,
    check_backbone,
    check_header,
    find_bundle,
    find_bundles,
    load_weights,
    read_card,
)
from vitsplit.config import Precision
from vitsplit.errors import BundleError, ConfigError, DataError, WeightsError
from vitsplit.files import shown
from vitsplit.hub_repository import repository_name
from vitsplit.model import Head, backbone_settings, build_head, head_shapes
from vitsplit.precision import Resolved, resolve_precision
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import ComparesFeatures, Task

RUN_FOLDERS = ("best", "last")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device; None: the first GPU, else the CPU.

    Raises:
        ConfigError: The device does not exist.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"--device {shown(str(device))} is not a device. {_describe_devices()}") from None
    if (chosen.index or 0) >= _count_devices().get(chosen.type, 0):
        raise ConfigError(f"--device {chosen} does not exist on this machine. {_describe_devices()}")
    return chosen


def _count_devices() -> dict[str, int]:
    """Number of devices of this machine by type."""
    accelerator = torch.accelerator.current_accelerator()
    return {"cpu": 1} if accelerator is None else {"cpu": 1, accelerator.type: torch.accelerator.device_count()}


def _describe_devices() -> str:
    """The devices of this machine, for error messages."""
    names = [f"{kind}:{index}" for kind, count in _count_devices().items() for index in range(count) if kind != "cpu"]
    return f"Available devices: {', '.join(['cpu', *names])}."


def backbone_of(card: Card, folder: Path, weights: str | Path | None = None) -> Backbone:
    """The backbone that a bundle was trained on, float32, on the CPU.

    Raises:
        BundleError: The weights differ from those that the bundle was trained on.
        WeightsError: The weights are unavailable.
    """
    backbone = open_backbone(backbone_settings(card.config), weights=weights_of(card, folder, weights))
    check_backbone(card, backbone, folder)
    return backbone


def weights_of(card: Card, folder: Path, weights: str | Path | None) -> str | Path | None:
    """The weights file of a bundle's backbone; None: the catalog's weights, or random weights.

    Paths in cards are not opened, and only models of the catalog are downloaded.

    Raises:
        WeightsError: The bundle was trained with weights from a file, or with a model that is neither in the catalog
            nor in the hub's cache.
    """
    name = card.config.backbone.backbone
    if weights is not None or card.config.backbone.random_weights:
        return weights
    path = card.paths.get("--weights")
    if path is not None:
        raise WeightsError(
            f"{folder}: trained with the weights in {shown(path, 1024)}. Paths in bundles are not opened: give the "
            "weights with --weights PATH (weights=PATH)."
        )
    if name in CATALOG:
        return None
    found = cached_weights(name)
    if found is None:
        raise WeightsError(
            f"{folder}: trained on {shown(name)}, which is not in the catalog (`vitsplit backbones`). Other "
            "models are not downloaded automatically: download the weights, and give them with --weights PATH "
            "(weights=PATH)."
        )
    return found


def check_weights(card: Card, folder: Path) -> None:
    """Checks the names and shapes of a bundle's tensors against its card, without reading them.

    Raises:
        BundleError: They differ, or the card is invalid.
    """
    try:
        model = head_shapes(card.config, card.description)
    except (ConfigError, DataError) as error:
        raise BundleError(f"{folder / CARD} is invalid. {error}") from error
    request = model.request(train=True)
    read = request.maps | request.raw_maps
    if not set(card.prior_layers) <= read:
        raise BundleError(
            f"{folder / CARD}: prior_layers {shown(card.prior_layers)} are not among the layers of its settings "
            f"({shown(sorted(read))}). Copy the bundle again from its source."
        )
    check_header(folder, model, without=LANGUAGE_MODEL, delta=bool(card.delta))


def open_head(card: Card, folder: Path, backbone: Backbone) -> tuple[Task, Head]:
    """A bundle's task, and its head and decoder with their weights.

    Raises:
        BundleError: The weights are missing, damaged, or do not fit the card; or they are differences to a backbone
            that has been rounded.
    """
    task = bare_task(card.config.task, card.description)
    if card.delta and backbone.precision != torch.float32:
        raise BundleError(
            f"{folder}: its weights are differences to the backbone in float32, and the backbone in memory has been "
            f"rounded to {backbone.precision}. Load the bundle together with the others, or all with --precision fp32 "
            "(precision='fp32')."
        )
    model = build_head(card.config, backbone, task)
    load_weights(folder, model, card.delta)
    for name, parameter in model.named_parameters():
        if name.startswith(LANGUAGE_MODEL):
            # For inference only, so that a fully tuned language model is stored in inference precision, too.
            parameter.requires_grad_(False)
    if isinstance(task, ComparesFeatures):
        task.familiarity = model.familiarity
    return task, model


def precision_of(card: Card) -> Precision:
    """Default precision of a bundle: float32 if it was trained in float32, else ``auto``.

    Support and speed of bf16 and fp16 depend on the machine.
    """
    return "fp32" if card.config.loop.precision == "fp32" else "auto"


def read_bundles(runs: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, tuple[Path, Card]]:
    """Folders and cards by bundle name, without reading weights. All bundles must be of one backbone.

    Raises:
        BundleError: A bundle is invalid, or bundles were trained on different backbones.
        ConfigError: There are no bundles, or two have the same name.
    """
    if not runs:
        raise ConfigError("No run was given. Give at least one run or bundle folder.")
    if isinstance(runs, Mapping):
        folders = [find_bundle(run) for run in runs.values()]
    else:
        folders = [folder for run in runs for folder in find_bundles(run)]
    cards = [read_card(folder) for folder in folders]
    names = list(runs) if isinstance(runs, Mapping) else bundle_names(folders, cards)
    for folder, card in zip(folders, cards, strict=True):
        if card.backbone["weights_hash"] != cards[0].backbone["weights_hash"]:
            raise BundleError(
                f"{folders[0]} was trained on {backbone_title(cards[0])}, but {folder} on {backbone_title(card)}. "
                "Bundles of different backbones cannot be loaded together. Use one after the other."
            )
    return {name: (folder, card) for name, folder, card in zip(names, folders, cards, strict=True)}


def bundle_names(folders: Sequence[Path], cards: Sequence[Card]) -> list[str]:
    """Names of heads: those in their runs (by default their tasks), or those of the run folders if they are not unique.

    Raises:
        ConfigError: Two names are equal.
    """
    own = [head_name(folder, card) for folder, card in zip(folders, cards, strict=True)]
    count = Counter(own)
    names = [name if count[name] == 1 else run_name(folder) for name, folder in zip(own, folders, strict=True)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(
                f"{folders[names.index(name)]} and {folders[index]} have the same name '{name}'. Rename a folder, or "
                "give names in Python: load({'first': RUN_A, 'second': RUN_B})."
            )
    return names


def head_name(folder: Path, card: Card) -> str:
    """Name of a head: that in its run if the run has several heads, else its task."""
    folder = folder.resolve()
    return folder.name if folder.parent.name in RUN_FOLDERS else card.task


def run_name(folder: Path) -> str:
    """Name of the run folder of a bundle, or of the bundle folder outside of a run."""
    folder = folder.resolve()
    if folder.parent.name in RUN_FOLDERS:  # a folder for each head
        folder = folder.parent
    if folder.name in RUN_FOLDERS:
        folder = folder.parent
    return repository_name(folder) or folder.name


def same_precision(cards: Mapping[str, Card], device: torch.device) -> Resolved:
    """The common default precision of bundles on a device; raises BundleError if they differ."""
    defaults = {name: precision_of(card) for name, card in cards.items()}
    resolved = {each: resolve_precision(each, device) for each in set(defaults.values())}
    if len(set(resolved.values())) > 1:
        by_name = ", ".join(f"{name}: {resolved[each]}" for name, each in defaults.items())
        raise BundleError(
            f"The bundles have different default precisions ({by_name}), but share one backbone. Give a common one, "
            "such as --precision fp32 (precision='fp32')."
        )
    return next(iter(resolved.values()))


def backbone_title(card: Card) -> str:
    """Name of a bundle's backbone, with the beginning of the hash of its weights."""
    return f"{card.backbone_title} (weights {card.backbone['weights_hash'][:16]})"
