"""From run folders to heads and their backbone, with every check before any weights are read."""

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
from vitsplit.model import Head, backbone_settings, build_head, head_shapes
from vitsplit.precision import Resolved, resolve_precision
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Task
from vitsplit.tasks.vqa.decoder import VqaDecoder

RUN_FOLDERS = ("best", "last")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device; None: the first GPU, else the CPU.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"--device {shown(str(device))} is no device. {_devices()}") from None
    if (chosen.index or 0) >= _devices_there().get(chosen.type, 0):
        raise ConfigError(f"--device {chosen}: this machine has none. {_devices()}")
    return chosen


def _devices_there() -> dict[str, int]:
    """How many devices of each type this machine has."""
    accelerator = torch.accelerator.current_accelerator()
    return {"cpu": 1} if accelerator is None else {"cpu": 1, accelerator.type: torch.accelerator.device_count()}


def _devices() -> str:
    """The devices of this machine, in words."""
    names = [f"{kind}:{index}" for kind, count in _devices_there().items() for index in range(count) if kind != "cpu"]
    return f"Choose among: {', '.join(['cpu', *names])}."


def backbone_of(card: Card, folder: Path, weights: str | Path | None = None) -> Backbone:
    """The backbone that a bundle was trained on, float32, on the CPU.

    Raises:
        BundleError: The weights are others than those it was trained on.
        WeightsError: The weights cannot be had.
    """
    backbone = open_backbone(backbone_settings(card.config), weights=weights_of(card, folder, weights))
    check_backbone(card, backbone, folder)
    return backbone


def weights_of(card: Card, folder: Path, weights: str | Path | None) -> str | Path | None:
    """The file of a bundle's backbone; None: that of the catalog's name, or random weights.

    A card names no file that is opened, and no download but the catalog's: what it says is shown, and asked for.

    Raises:
        WeightsError: It was trained with a file, or with a model that is neither in the catalog nor in the hub's cache.
    """
    name = card.config.backbone.backbone
    if weights is not None or card.config.backbone.random_weights:
        return weights
    path = card.paths.get("--weights")
    if path is not None:
        raise WeightsError(
            f"{folder}: trained with weights read from {shown(path, 1024)}. A bundle does not decide which file is "
            "opened: say where they are, --weights PATH (weights=PATH)."
        )
    if name in CATALOG:
        return None
    found = cached_weights(name)
    if found is None:
        raise WeightsError(
            f"{folder}: trained on {shown(name)}, which is not in the catalog (`vitsplit backbones`). A bundle does "
            "not decide what is downloaded: download its weights yourself, and give them with --weights PATH "
            "(weights=PATH)."
        )
    return found


def check_weights(card: Card, folder: Path) -> None:
    """Compares what is known of a bundle's tensors with its card's model, without memory for either.

    Raises:
        BundleError: They do not fit each other, or no model can be made of the card.
    """
    try:
        model = head_shapes(card.config, card.description)
    except (ConfigError, DataError) as error:
        raise BundleError(f"{folder / CARD}: no model can be made of it. {error}") from error
    request = model.request(train=True)
    read = request.maps | request.raw_maps
    if not set(card.prior_layers) <= read:
        raise BundleError(
            f"{folder / CARD}: prior_layers {shown(card.prior_layers)} are not among those that its settings read "
            f"({shown(sorted(read))}). Copy the bundle again from where it was trained."
        )
    check_header(folder, model, without=LANGUAGE_MODEL)


def open_head(card: Card, folder: Path, backbone: Backbone) -> tuple[Task, Head]:
    """A bundle's task, and its head and decoder with their weights.

    Raises:
        BundleError: The weights are missing, damaged, or do not fit the card.
    """
    task = bare_task(card.config.task, card.description)
    model = build_head(card.config, backbone, task)
    load_weights(folder, model)
    if isinstance(model.decoder, VqaDecoder) and model.decoder.language_model is not None:
        # It trains no more: one that was tuned whole is then kept in the precision of its answers, like any other.
        model.decoder.language_model.requires_grad_(False)
    return task, model


def precision_of(card: Card) -> Precision:
    """What a bundle is used in unless told otherwise: float32 if its run computed in it, else what suits the machine.

    bf16 and fp16 are matters of the machine: another one may lack them, or be slow in them.
    """
    return "fp32" if card.config.loop.precision == "fp32" else "auto"


def read_bundles(runs: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, tuple[Path, Card]]:
    """Folders and cards by the bundles' names, before any weights are read; all are of one backbone.

    Raises:
        BundleError: A bundle is broken, or they were trained on different backbones.
        ConfigError: There is none, or two would have the same name.
    """
    if not runs:
        raise ConfigError("No run was named. Give at least one run or bundle folder.")
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
                "One backbone serves only bundles that were trained on it: use these one after the other."
            )
    return {name: (folder, card) for name, folder, card in zip(names, folders, cards, strict=True)}


def bundle_names(folders: Sequence[Path], cards: Sequence[Card]) -> list[str]:
    """The name of the head in its run, which is its task's unless another was given; of several such the run folder's.

    Raises:
        ConfigError: Two names are the same.
    """
    own = [head_name(folder, card) for folder, card in zip(folders, cards, strict=True)]
    count = Counter(own)
    names = [name if count[name] == 1 else run_name(folder) for name, folder in zip(own, folders, strict=True)]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(
                f"{folders[names.index(name)]} and {folders[index]} would both be called '{name}'. Rename a folder, or "
                "in Python give names of your own: load({'first': RUN_A, 'second': RUN_B})."
            )
    return names


def head_name(folder: Path, card: Card) -> str:
    """The name of a head in its run, where the run has a folder for each; else its task's."""
    folder = folder.resolve()
    return folder.name if folder.parent.name in RUN_FOLDERS else card.task


def run_name(folder: Path) -> str:
    """What people call a bundle: the name of its run folder, or of the bundle folder outside of a run."""
    folder = folder.resolve()
    if folder.parent.name in RUN_FOLDERS:  # a folder for each head
        folder = folder.parent
    return folder.parent.name if folder.name in RUN_FOLDERS else folder.name


def same_precision(cards: Mapping[str, Card], device: torch.device) -> Resolved:
    """The one precision that all bundles ask for on this device, or a BundleError that names what each asks for."""
    asked = {name: precision_of(card) for name, card in cards.items()}
    resolved = {each: resolve_precision(each, device) for each in set(asked.values())}
    if len(set(resolved.values())) > 1:
        wishes = ", ".join(f"{name}: {resolved[each]}" for name, each in asked.items())
        raise BundleError(
            f"The bundles compute in different precisions ({wishes}), and one backbone has one. "
            "Load them all in the same: --precision fp32 (precision='fp32'), or another."
        )
    return next(iter(resolved.values()))


def backbone_title(card: Card) -> str:
    """A bundle's backbone, and the beginning of its hash."""
    return f"{card.backbone_title} (weights {card.backbone['weights_hash'][:16]})"
