"""A bundle and its backbone, ready to use.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from vitsplit.backbone import open_backbone
from vitsplit.backbone.catalog import CATALOG
from vitsplit.backbone.frozen import Backbone
from vitsplit.backbone.weights import cached_weights
from vitsplit.bundle import (
    CARD,
    LANGUAGE_MODEL,
    Card,
    check_backbone,
    check_header,
    find_bundle,
    load_weights,
    read_card,
)
from vitsplit.data.images import to_image_tensor
from vitsplit.engine.config import Precision
from vitsplit.engine.precision import DTYPES, autocast, resolve_precision
from vitsplit.errors import BundleError, ConfigError, DataError, NotPicklableError, WeightsError
from vitsplit.files import shown
from vitsplit.inference.asking import name_to_ask, with_language_model
from vitsplit.inference.shared_pass import TapSource
from vitsplit.methods.settings import backbone_settings
from vitsplit.model import build_model, model_shapes
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Forward, Task
from vitsplit.tasks.model import TaskModel
from vitsplit.tasks.vqa.decoder import VqaDecoder
from vitsplit.types import LayerTaps


def make_forward(backbone: Backbone, model: TaskModel, source: TapSource | None = None) -> Forward:
    """One pass of the backbone and one of the model, without gradient, in the backbone's precision.

    Args:
        backbone: The backbone.
        model: Head and decoder.
        source: Where the taps come from; None: a pass of the backbone for this model alone.
    """

    request = model.request(train=False)  # once: a gate's choice of layers is read from the device

    @torch.inference_mode()
    def forward(image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        device = backbone.mean_C11.device
        taps = backbone(image_BCHW.to(device), request) if source is None else source(image_BCHW, request)
        with autocast(device.type, backbone.precision):
            return model(taps), taps

    return forward


def not_picklable(what: str) -> NotPicklableError:
    """The error of who sends a predictor to another process."""
    return NotPicklableError(
        f"A {what} cannot be sent to another process or copied: its backbone's weights would be. Call vitsplit.load in "
        "each process, as the initializer of a pool does, and send images and predictions."
    )


class Predictor:
    """What ``vitsplit.load`` returns for one bundle.

    Several threads may predict with it. In several processes, load it in each: it cannot be pickled.

    Attributes:
        card: The bundle's card.
        task: The task, with its classes.
    """

    def __init__(self, card: Card, task: Task, backbone: Backbone, model: TaskModel) -> None:
        self.card = card
        self.task = task
        self.backbone = backbone
        self.model = model.eval()
        self.forward = make_forward(backbone, self.model)

    def __reduce__(self) -> NoReturn:
        raise not_picklable("predictor")

    def predict(self, image: Any) -> Any:
        """The task's typed prediction for one image, at the image's own size.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W).

        Raises:
            DataError: The image cannot be read or has an unknown form.
        """
        return self.predict_batch(to_image_tensor(image)[None])[0]

    def predict_batch(self, image_BCHW: Tensor) -> Sequence[Any]:
        """The typed predictions for images (uint8, RGB) of one size."""
        return self.task.predict(self.forward, image_BCHW)

    @overload
    def ask(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> str: ...

    @overload
    def ask(self, image: Any, question: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]: ...

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> str | list[str]:
        """The answer to a question on an image, or those to several; of bundles of visual question answering.

        To ask more later without looking at the image again, keep its prediction: ``model.predict(image).ask(...)``.

        Args:
            image: What ``predict`` takes.
            question: A question, or several; each is answered as if it were asked alone.
            max_new_tokens: The most tokens of an answer; None: as the bundle says.

        Raises:
            ConfigError: The bundle is of another task.
            DataError: The image cannot be read or has an unknown form.

        Example:
            >>> vitsplit.load("runs/vqa").ask("desk.jpg", "What is on the desk?")  # doctest: +SKIP
            'a lamp'
        """
        name_to_ask({self.task.name: self.card})
        prediction = self.predict(image)
        if isinstance(question, str):
            return str(prediction.ask(question, max_new_tokens=max_new_tokens))
        return list(prediction.ask_many(question, max_new_tokens=max_new_tokens))


def load_predictor(
    run: str | Path,
    *,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """Loads a bundle and the backbone that it was trained on.

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        weights: File or folder of the backbone's weights, where they are neither cached nor to be fetched.
        language_weights: Folder of the language model of a bundle that has one.
        language_model: Its name, where it is none of those that vitsplit knows and may be taken from the hub.
        device: Where to compute; None: the first GPU, else the processor.
        precision: What to compute in; None: float32 if the run computed in it, else what suits the device (``auto``).

    Raises:
        BundleError: The bundle is broken, or the backbone or the language model is another one.
        ConfigError: ``language_weights`` of a bundle without a language model.
        WeightsError: The weights of the backbone or the language model cannot be had.
    """
    folder = find_bundle(run)
    card = read_card(folder)
    ((_, card),) = with_language_model({card.task: (folder, card)}, language_weights, language_model).values()
    device = choose_device(device)
    check_weights(card, folder)
    backbone = backbone_of(card, folder, weights)
    task, model = open_model(card, folder, backbone)
    backbone.set_precision(DTYPES[resolve_precision(precision or precision_of(card), device)])
    return Predictor(card, task, backbone.to(device), model.to(device))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device; None: the first GPU, else the processor.

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
    """The backbone that a bundle was trained on, float32, on the processor.

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
        model = model_shapes(card.config, card.description)
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


def open_model(card: Card, folder: Path, backbone: Backbone) -> tuple[Task, TaskModel]:
    """A bundle's task, and its head and decoder with their weights.

    Raises:
        BundleError: The weights are missing, damaged, or do not fit the card.
    """
    task = bare_task(card.config, card.description)
    model = build_model(card.config, backbone, task)
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
