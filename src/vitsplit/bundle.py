"""Head bundles: the trained weights of one task, in a small folder that needs its backbone to run.

::

    head.safetensors   trained weights and norm statistics, without the backbone
    head.json          the card: task, classes, backbone with hash and license, configuration, metrics, version
    README.md          a summary of the card, with the metadata of a model card of the Hugging Face hub

Bundles contain no pickle files and may be untrusted: the card is checked completely before anything is built; names,
shapes and dtypes of the tensors are compared with those of the card's model before any of them is read; and paths in
the card are not followed. Loading compares the backbone's hash with that of the card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitsplit.atomic_files import json_text
from vitsplit.backbone.backbone import Backbone
from vitsplit.backbone.catalog import CATALOG
from vitsplit.bundle_delta import BITS, copied_parameters, from_delta
from vitsplit.card_paths import without_folders, without_paths
from vitsplit.errors import BundleError, ConfigError
from vitsplit.files import SMALL_FILE, is_address, read_json, real_number, shown, string, whole_number
from vitsplit.hub_repository import download
from vitsplit.model import Head
from vitsplit.model_card import Weights, model_card
from vitsplit.saved_config import flat_from_dict, flat_to_dict
from vitsplit.tasks import TASKS, check_description
from vitsplit.tasks.base import Task
from vitsplit.tasks.description import ADVICE, check_hash, line
from vitsplit.train_config import TrainConfig
from vitsplit.version import __version__

FORMAT = 1
WEIGHTS, CARD, README = "head.safetensors", "head.json", "README.md"
LARGEST_WEIGHTS = 32 << 30
"""Size limit in bytes of weights on the hub (a language model of 7e9 parameters in float32 has 28e9)."""
LANGUAGE_MODEL = "decoder.language_model."
"""Prefix of the tensors of a tuned language model, whose shapes are known only after that model is loaded."""

_FIELDS = frozenset(
    {"format", "vitsplit", "task", "backbone", "prior_layers", "description", "metrics", "config", "choice", "delta"}
)
_BACKBONE_FIELDS = frozenset({"name", "title", "timm_name", "licence", "source", "weights_hash"})
_MAX_LAYERS = 1000
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Card:
    """The contents of ``head.json``.

    Attributes:
        task: Name of the task.
        config: The resolved configuration of the run.
        description: Information for using the task without data (``Task.describe``).
        backbone: ``name``, ``title``, ``timm_name``, ``licence``, ``source``, ``weights_hash``.
        prior_layers: Blocks (0-based) that the bundle reads at inference.
        metrics: Metrics on the validation set.
        version: Version of vitsplit that wrote it.
        choice: With ``--layers auto``, the candidates, their losses and cost, and the chosen one; empty otherwise.
        paths: Paths outside of the bundle in the card's configuration, by flag. They are removed from ``config``, so
            that a card cannot open other files.
        delta: Where copies of the backbone's parameters are stored as differences to them (``bundle_delta``), the hash
            of the copies; empty otherwise.
    """

    task: str
    config: TrainConfig
    description: Mapping[str, Any]
    backbone: Mapping[str, str]
    prior_layers: tuple[int, ...]
    metrics: Mapping[str, Any]
    version: str
    choice: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    delta: str = ""

    @property
    def backbone_title(self) -> str:
        """The backbone's display name, which includes a patch size that differs from the original one."""
        # Bundles of earlier versions have no title.
        return self.backbone.get("title", self.backbone["name"])


def save_bundle(
    folder: Path,
    *,
    config: TrainConfig,
    task: Task,
    backbone: Backbone,
    head: Head,
    metrics: Mapping[str, Any],
    choice: Mapping[str, Any] | None = None,
) -> None:
    """Writes a bundle into ``folder``; ``config.loop.bundle_precision`` may round its matrices to bf16.

    ``choice`` is how its layers were chosen, see ``Card.choice``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = head.trainable_state()
    if config.loop.bundle_precision == "bf16":
        # Except the gate's scores: bf16 rounding could change which layers they select.
        state = {
            name: tensor if tensor.dim() < 2 or name.endswith("gate.scores_LJ") else tensor.bfloat16()
            for name, tensor in state.items()
        }
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    request = head.head.request(train=False)
    info = backbone.info
    description = task.describe()
    if config.task.calibrated and (temperature := metrics.get("calibration", {}).get("temperature")) is not None:
        description["temperature"] = temperature
    card = card_to_dict(
        Card(
            task=config.task.name,
            config=config,
            description=description,
            backbone={
                "name": info.name,
                "title": info.title,
                "timm_name": info.timm_name,
                "licence": info.license,
                "source": info.source,
                "weights_hash": info.weights_hash,
            },
            prior_layers=tuple(sorted(request.maps | request.raw_maps)),
            metrics=metrics,
            version=__version__,
            choice=choice or {},
        )
    )
    (folder / CARD).write_text(json_text(card, indent=2) + "\n", encoding="utf-8")
    weights = describe_weights(sum(tensor.numel() for tensor in state.values()), config, head)
    page = model_card({config.task.name: card}, {config.task.name: weights})
    (folder / README).write_text(page, encoding="utf-8")


def describe_weights(values: int, config: TrainConfig, model: Head) -> Weights:
    """What the weights of a bundle are, for its model card.

    Args:
        values: Their number of values.
        config: The settings of the bundle.
        model: Its head, which may be untrained or on the meta device.
    """
    copied = sum(parameter.numel() for parameter in copied_parameters(model).values())
    return Weights(values, copied, config.task.included_model)


def card_to_dict(card: Card) -> dict[str, Any]:
    """The contents of ``head.json``, which ``parse_card`` reads: paths in the settings without their folders."""
    contents: dict[str, Any] = {
        "format": FORMAT,
        "vitsplit": card.version,
        "task": card.task,
        "backbone": dict(card.backbone),
        "prior_layers": list(card.prior_layers),
        "description": dict(card.description),
        "metrics": dict(card.metrics),
        "config": flat_to_dict(card.config),
    }
    contents |= {"choice": dict(card.choice)} if card.choice else {}
    contents |= {"delta": card.delta} if card.delta else {}
    return without_folders(contents, card.config)


def public_card(folder: Path) -> dict[str, Any]:
    """The contents of a bundle's ``head.json``, of this or an earlier version, without folders of this machine.

    Raises:
        BundleError: As ``read_card``.
    """
    read_card(folder)
    file = folder / CARD
    contents: dict[str, Any] = read_json(file, error=BundleError, advice=ADVICE)
    return without_folders(contents, flat_from_dict(contents["config"], contents["task"], f"{file}: config"))


def find_bundle(path: str | Path) -> Path:
    """The bundle folder of a RUN argument, see ``find_bundles``.

    Raises:
        BundleError: There is none, or several; the message names them.
    """
    folders = find_bundles(path)
    if len(folders) > 1:
        named = ", ".join(map(str, folders))
        raise BundleError(f"{path}: there are {len(folders)} head bundles here. Name one of them: {named}.")
    return folders[0]


def find_bundles(path: str | Path) -> list[Path]:
    """The bundle folders of a RUN argument: a bundle itself, or the best (or else last) bundle of each head of a run.

    A RUN on the hub (``hf://namespace/name[@revision]``) is downloaded first, into the hub cache.

    Raises:
        BundleError: There is none.
        HubError: As ``hub_repository.download``.
    """
    path = download(path, {CARD: SMALL_FILE, WEIGHTS: LARGEST_WEIGHTS}) if is_address(path) else Path(path)
    for folder in (path, path / "best", path / "last"):
        if (folder / CARD).is_file():
            return [folder]
        # Runs with several heads have one subfolder per head.
        found = {card.parent.name: card.parent for card in folder.glob(f"*/{CARD}") if _is_of_head(card)}
        if found:
            names = [*(task for task in TASKS.names() if task in found), *sorted(found.keys() - set(TASKS.names()))]
            return [found[name] for name in names]
    hint = "The run has no evaluation yet." if (path / "config.json").is_file() else "Give a run or bundle folder."
    raise BundleError(f"{path}: there is no head bundle here (no {CARD}, best/{CARD} or last/{CARD}). {hint}")


def _is_of_head(card: Path) -> bool:
    # Not best or last themselves, nor temporary folders of a killed run.
    name = card.parent.name
    return card.is_file() and name not in ("best", "last") and not name.startswith(".")


def read_card(path: str | Path) -> Card:
    """Reads and checks the card of a run or bundle, without reading weights.

    Raises:
        BundleError: There is no bundle, or its card is invalid or from a newer version; the message names the key.
    """
    file = find_bundle(path) / CARD
    return parse_card(read_json(file, error=BundleError, advice=ADVICE), str(file))


def parse_card(data: Any, where: str) -> Card:
    """Checks the contents of a card.

    Args:
        data: The value of the JSON file.
        where: The file, for messages.

    Raises:
        BundleError: As ``read_card``.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where}: holds {shown(data)}, not an object. {ADVICE}")
    version = line(data.get("vitsplit", "?"), f"{where}: vitsplit")
    if whole_number(data.get("format"), f"{where}: format", 1, 10**6, error=BundleError, advice=ADVICE) > FORMAT:
        raise BundleError(f"{where}: written by vitsplit {version}, which is newer. Update vitsplit.")
    _check_keys(data, _FIELDS, where, frozenset({"choice", "delta"}))
    task = data["task"]
    if not isinstance(task, str) or task not in TASKS.names():
        raise BundleError(
            f"{where}: task is {shown(task)}, not one of {', '.join(TASKS.names())}. "
            "Update vitsplit, or install the package that provides it."
        )
    try:
        config, paths = without_paths(flat_from_dict(data["config"], task, f"{where}: config"))
    except ConfigError as error:
        raise BundleError(f"{error} {ADVICE}") from error
    backbone = _read_backbone(data["backbone"], where)
    check_description(config.task, data["description"], f"{where}: description")
    _check_metrics(data["metrics"], f"{where}: metrics")
    _check_metrics(data.get("choice", {}), f"{where}: choice")
    if "delta" in data:
        check_hash(data["delta"], f"{where}: delta")
    return Card(
        task=task,
        config=config,
        description=data["description"],
        backbone=backbone,
        prior_layers=_read_layers(data["prior_layers"], config.backbone.backbone, where),
        metrics=data["metrics"],
        version=version,
        choice=data.get("choice", {}),
        paths=paths,
        delta=data.get("delta", ""),
    )


def _check_keys(
    data: Mapping[str, Any], wanted: frozenset[str], where: str, optional: frozenset[str] = frozenset()
) -> None:
    for key in sorted(wanted - optional - data.keys()):
        raise BundleError(f"{where}: {key} is missing. {ADVICE}")
    for key in sorted(data.keys() - wanted):
        raise BundleError(f"{where}: unknown key {shown(key)}. Update vitsplit, or remove it.")


def _read_backbone(data: Any, where: str) -> dict[str, str]:
    if not isinstance(data, dict):
        raise BundleError(f"{where}: backbone must be an object, not {shown(data)}. {ADVICE}")
    # Bundles of earlier versions have no title.
    _check_keys(data, _BACKBONE_FIELDS, f"{where}: backbone", frozenset({"title"}))
    read = {key: line(value, f"{where}: backbone.{key}") for key, value in data.items()}
    check_hash(read["weights_hash"], f"{where}: backbone.weights_hash")
    return read


def _read_layers(data: Any, backbone: str, where: str) -> tuple[int, ...]:
    most = CATALOG[backbone].num_layers if backbone in CATALOG else _MAX_LAYERS
    if not isinstance(data, list) or len(data) > most:
        raise BundleError(f"{where}: prior_layers must be a list of at most {most} blocks, not {shown(data)}. {ADVICE}")
    for layer in data:
        whole_number(layer, f"{where}: prior_layers", 0, most - 1, error=BundleError, advice=ADVICE)
    if sorted(set(data)) != data:
        raise BundleError(f"{where}: prior_layers must be strictly increasing, not {shown(data)}. {ADVICE}")
    return tuple(data)


def _check_metrics(value: Any, where: str, depth: int = 0) -> None:
    """Checks metrics or a choice of layers, by name: finite numbers, strings, null, objects and lists of them."""
    if depth == 0 and not isinstance(value, dict):
        raise BundleError(f"{where} must be an object, not {shown(value)}. {ADVICE}")
    if depth > 8:
        raise BundleError(f"{where}: nested too deeply. {ADVICE}")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_metrics(item, f"{where}.{line(key, where)}", depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_metrics(item, where, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        real_number(value, where, error=BundleError, advice=ADVICE)
    elif isinstance(value, str):
        string(value, where, error=BundleError, advice=ADVICE)


def check_backbone(card: Card, backbone: Backbone, where: str | Path) -> None:
    """Refuses a backbone with other weights than the bundle was trained on.

    Raises:
        BundleError: The hashes differ; the message has both. Or the bundle was written by a version that ran the
            backbone with another activation.
    """
    expected, found = card.backbone["weights_hash"], backbone.info.weights_hash
    if expected and expected == backbone.info.former_hash:
        raise BundleError(
            f"{where}: trained by a version of vitsplit that ran {card.backbone_title} with plain GELU instead of the "
            f"activation it was pretrained with. Train it again, or, to run it as it was trained, replace "
            f'"{backbone.info.name}" by "{card.backbone["timm_name"]}" in config.backbone.backbone of its {CARD}.'
        )
    if expected != found:
        raise BundleError(
            f"{where}: trained on {card.backbone_title} with weights {expected[:16]}, but this is {backbone.name} "
            f"with weights {found[:16]} ({backbone.info.source}). Use the weights that it was trained on."
        )


def check_header(path: str | Path, model: Head, *, without: str | None = None, delta: bool = False) -> None:
    """Compares names, shapes and dtypes of a bundle's tensors with those of a model, without reading the tensors.

    Args:
        path: Run or bundle folder.
        model: Built from the bundle's card; it may be on the meta device.
        without: Prefix of tensor names that are not compared.
        delta: Whether copies of the backbone's parameters are stored as differences.

    Raises:
        BundleError: The file is missing, damaged or too large, or its tensors do not match; the message names them.
    """
    file = find_bundle(path) / WEIGHTS
    found = {name: value for name, value in _header(file).items() if without is None or not name.startswith(without)}
    expected = model.trainable_state()
    differences = copied_parameters(model).keys() if delta else ()
    twice = found.keys() & {current for name in found if (current := model.current_name(name)) != name}
    found = {model.current_name(name): value for name, value in found.items()}
    # Tensors that an earlier version did not have are added when the weights are loaded.
    known = model.upgraded({name: torch.empty(shape, device="meta") for name, (_, shape) in found.items()})
    missing = expected.keys() - known.keys()
    wrong = [f"missing: {_name_list(missing)}"] * bool(missing)
    wrong += [f"also under a former name: {_name_list(twice)}"] * bool(twice)
    wrong += [f"unexpected: {_name_list(found.keys() - expected.keys())}"] * bool(found.keys() - expected.keys())
    for name in sorted(expected.keys() & found.keys()):
        (kind, shape), tensor = found[name], expected[name]
        floats = [*BITS] if name in differences else [*_FLOATS]
        kinds = floats if tensor.is_floating_point() else ["I64"]
        if shape != tuple(tensor.shape) or kind not in kinds:
            wrong.append(f"{name} is {kind} {list(shape)} instead of {' or '.join(kinds)} {list(tensor.shape)}")
    if wrong:
        more = f"; and {len(wrong) - 4} more" * (len(wrong) > 4)
        raise BundleError(f"{file}: does not fit its card ({'; '.join(wrong[:4])}{more}). {ADVICE}")


def load_weights(path: str | Path, model: Head, delta: str = "") -> None:
    """Loads a bundle's weights into a model built from its card.

    Args:
        path: Run or bundle folder.
        model: The untrained model; with ``delta``, on the bundle's backbone in float32.
        delta: ``Card.delta``.

    Raises:
        BundleError: The file is missing, damaged, of another model, or holds invalid numbers (see ``read_weights``).
    """
    check_header(path, model, delta=bool(delta))
    model.load_trainable_state(read_weights(path, model, delta))


def read_weights(path: str | Path, model: Head | None = None, delta: str = "") -> dict[str, Tensor]:
    """Reads a bundle's weights by name: float32, and int64 for the step counts of batch norms.

    Args:
        path: Run or bundle folder.
        model: Required with ``delta``, see ``load_weights``.
        delta: ``Card.delta``; empty: a bundle with differences is an error.

    Raises:
        BundleError: The file is missing or damaged, or holds non-finite numbers, negative variances, or tensors of
            unsupported dtypes; or differences cannot be restored bit for bit.
    """
    file = find_bundle(path) / WEIGHTS
    kinds = {*_FLOATS, "I64", *(BITS if delta else ())}
    for name, (kind, shape) in _header(file).items():
        if kind not in kinds:
            raise BundleError(f"{file}: {shown(name)} is {kind} {list(shape)}: unsupported dtype. {ADVICE}")
    state = read_tensors(file)
    if delta:
        assert model is not None, "differences need the backbone's parameters"
        state, found = from_delta(model.upgraded(state), model)
        if found != delta:
            raise BundleError(
                f"{file}: its differences to the backbone do not give the trained weights (hash {found[:16]} instead "
                f"of {delta[:16]}). {ADVICE} With another patch size, the resampled backbone of this machine may "
                "differ: use a bundle that was pushed without --delta."
            )
    for name, tensor in state.items():
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{file}: {name} holds NaN or infinite numbers. {ADVICE}")
        # Variances and step counts cannot be negative.
        if name.endswith(("running_var", "num_batches_tracked")) and (tensor < 0).any():
            raise BundleError(f"{file}: {name} holds negative numbers. {ADVICE}")
    return state


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a bundle's file by name, in the dtypes of the file.

    Raises:
        BundleError: The file is missing or damaged.
    """
    header = _header(file)
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in header}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file}: cannot be read ({error}). {ADVICE}") from error


def count_values(file: Path) -> int:
    """Number of values of a bundle's ``head.safetensors``.

    Raises:
        BundleError: The file is missing or damaged.
    """
    return sum(math.prod(shape) for _, shape in _header(file).values())


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor of a file. Safetensors checks that the file's size matches."""
    try:
        if not file.is_file():
            raise BundleError(f"{file}: the file does not exist, or is not a regular file. {ADVICE}")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if length > SMALL_FILE:
            raise BundleError(f"{file}: header of {length:,} bytes exceeds the limit of {SMALL_FILE:,}. {ADVICE}")
        with safe_open(file, framework="pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118  # not a dict
            return {name: (each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
    except (SafetensorError, OSError, MemoryError) as error:
        raise BundleError(f"{file}: cannot be read ({error}). {ADVICE}") from error


def _name_list(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(shown(name) for name in ordered[:4]) + (f" and {len(ordered) - 4} more" * (len(ordered) > 4))
