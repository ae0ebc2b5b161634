"""A bundle and its backbone, ready to use.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitsplit.backbone import load_backbone
from vitsplit.backbone.frozen import Backbone
from vitsplit.bundle import Card, check_backbone, find_bundle, load_weights, read_card
from vitsplit.data.images import to_image_tensor
from vitsplit.errors import WeightsError
from vitsplit.methods import build_model
from vitsplit.tasks import bare_task
from vitsplit.tasks.base import Forward, Task
from vitsplit.tasks.model import TaskModel
from vitsplit.training.config import Precision
from vitsplit.training.precision import DTYPES, resolve_precision
from vitsplit.types import LayerTaps


def make_forward(backbone: Backbone, model: TaskModel) -> Forward:
    """One pass of the backbone and one of the model, without gradient, in the backbone's precision."""

    @torch.inference_mode()
    def forward(image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        device = backbone.mean_C11.device
        taps = backbone(image_BCHW.to(device), model.head.request)
        with torch.autocast(device.type, backbone.precision, enabled=backbone.precision != torch.float32):
            return model(taps), taps

    return forward


class Predictor:
    """What ``vitsplit.load`` returns.

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

    def predict(self, image: Any) -> Any:
        """The task's typed prediction for one image, at the image's own size.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W).

        Raises:
            DataError: The image cannot be read or has an unknown form.
        """
        return self.task.predict(self.forward, to_image_tensor(image)[None])[0]


def load_predictor(
    run: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """Loads a bundle and the backbone that it was trained on.

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        weights: File or folder of the backbone's weights, where they are neither cached nor to be fetched.
        device: Where to compute; None: the first GPU, else the processor.
        precision: What to compute in; None: float32 if the run computed in it, else what suits the device (``auto``).

    Raises:
        BundleError: The bundle is broken or the backbone is another one.
        WeightsError: The backbone's weights cannot be had.
    """
    folder = find_bundle(run)
    card = read_card(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    asked = card.config.backbone
    if weights is None and asked.weights is not None and not Path(asked.weights).exists():
        raise WeightsError(
            f"{folder}: trained with weights read from {asked.weights}, which is not on this machine. "
            "Say where they are: --weights PATH (weights=PATH)."
        )
    backbone = load_backbone(
        card.backbone["name"], weights=weights or asked.weights, random_weights=asked.random_weights
    )
    check_backbone(card, backbone, folder)
    task = bare_task(card.config, card.description)
    model = build_model(card.config, backbone, task)
    load_weights(folder, model)
    backbone.set_precision(DTYPES[resolve_precision(precision or _precision_of(card), device)])
    return Predictor(card, task, backbone.to(device), model.to(device))


def _precision_of(card: Card) -> Precision:
    # bf16 and fp16 are matters of the machine: another one may lack them, or be slow in them.
    return "fp32" if card.config.loop.precision == "fp32" else "auto"
