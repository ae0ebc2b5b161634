"""Unlabeled images in the order in which labeling would teach a head most: uncertain, and unlike those before them.

Greedy k-center (Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018)
on frozen features, with distances weighted by the uncertainty of the prediction.

Shapes: B batch, N images, M other images, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsplit.data.images import read_image
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.batches import in_background
from vitsplit.inference.predictor import LoadedHead, make_forward
from vitsplit.types import LayerTaps, TapRequest


@dataclass(frozen=True)
class Measured:
    """Images with what they are ranked by.

    Attributes:
        paths: The N files.
        uncertainty_N: ``Prediction.uncertainty``, float32, at least 0.
        feature_ND: Mean of the last layer's patch tokens, of unit length, float32.
        failed: Errors of files that could not be read; they are not in ``paths``.
    """

    paths: tuple[Path, ...]
    uncertainty_N: Tensor
    feature_ND: Tensor
    failed: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Choice:
    """An image in the order.

    Attributes:
        index: Its index in ``Measured.paths``.
        uncertainty: Its uncertainty.
        distance: Cosine distance to the nearest image before it, or labeled image; 1 for the first without any.
    """

    index: int
    uncertainty: float
    distance: float

    @property
    def score(self) -> float:
        """What the order maximizes, greedily."""
        return self.uncertainty * self.distance


def measure(head: LoadedHead, files: Iterable[Path], on_image: Callable[[], None] = lambda: None) -> Measured:
    """Predicts images one by one; prediction and features are of one backbone pass.

    Args:
        head: A head whose predictions have an uncertainty: of segmentation or detection.
        files: The images.
        on_image: Called after every image.

    Raises:
        ConfigError: Predictions of the task have no uncertainty.
    """
    if head.card.config.task.prediction_type().uncertainty_meaning is None:
        raise ConfigError(
            f"{head.card.task}: predictions have no uncertainty to rank by. Give a bundle of segmentation or detection."
        )
    paths, uncertainties, features, failed = [], [], [], []
    for path, image_CHW in in_background(_read, files, threads=1, ahead=2):
        if isinstance(image_CHW, DataError):
            failed.append(str(image_CHW))
        else:
            prediction, feature_D = _predict(head, image_CHW)
            paths.append(path)
            uncertainties.append(prediction.uncertainty())
            features.append(feature_D)
        on_image()
    feature_ND = torch.stack(features) if features else torch.zeros(0, head.backbone.width)
    return Measured(tuple(paths), torch.tensor(uncertainties), feature_ND, tuple(failed))


def greedy_order(images: Measured, count: int, labeled_MD: Tensor | None = None) -> list[Choice]:
    """Chooses images one by one, each with the largest product of uncertainty and distance to those before it.

    Args:
        images: The N images.
        count: Number of images to choose; at most N are.
        labeled_MD: Features of images that are labeled already, of unit length; None: there are none.
    """
    has_centers = labeled_MD is not None and len(labeled_MD) > 0
    nearest_N = torch.full((len(images.paths),), math.inf)
    if labeled_MD is not None and has_centers:
        nearest_N = 1 - (images.feature_ND @ labeled_MD.T).amax(1)
    left_N = torch.ones(len(images.paths), dtype=torch.bool)
    order: list[Choice] = []
    for _ in range(min(count, len(images.paths))):
        distance_N = nearest_N.clamp_min(0) if order or has_centers else torch.ones(len(images.paths))
        index = int(torch.where(left_N, images.uncertainty_N * distance_N, -1.0).argmax())
        order.append(Choice(index, float(images.uncertainty_N[index]), float(distance_N[index])))
        left_N[index] = False
        nearest_N = torch.minimum(nearest_N, 1 - images.feature_ND @ images.feature_ND[index])
    return order


def _read(path: Path) -> tuple[Path, Tensor | DataError]:
    try:
        return path, read_image(path)
    except DataError as error:
        return path, error


def _predict(head: LoadedHead, image_CHW: Tensor) -> tuple[Any, Tensor]:
    """The prediction of an image, and its feature: of several windows or views, their mean."""
    backbone, last = head.backbone, head.backbone.num_layers - 1
    found: list[Tensor] = []

    def source(image_BCHW: Tensor, request: TapRequest) -> LayerTaps:
        taps = backbone(image_BCHW.to(backbone.mean_C11.device), request | TapRequest(maps=frozenset({last})))
        found.append(taps.maps[last].float().mean((2, 3)))
        return taps

    (prediction,) = head.task.predict(make_forward(backbone, head.model, source), image_CHW[None])
    return prediction, F.normalize(torch.cat(found).mean(0), dim=0).cpu()
