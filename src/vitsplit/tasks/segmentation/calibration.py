"""Temperature scaling and the expected calibration error.

Both as in Guo et al., On Calibration of Modern Neural Networks (ICML 2017). The temperature T divides the logits of all
classes, so that it changes confidences but never classes. It is fitted on the validation images at even positions, and
errors are measured on those at odd positions: no pixel is used for both.

Shapes: P pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitsplit.data.classes import IGNORE
from vitsplit.tasks.description import TEMPERATURES

BINS = 15
SCORES_IN_TOTAL = 1 << 24
"""Maximum number of scores (pixels times classes) of all validation images: 64 MB."""
_TOLERANCE = 1e-4
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class PixelScores:
    """Some labeled pixels of an image.

    Attributes:
        scores_PK: Logits, up to a constant per pixel, float32.
        label_P: Classes, int64.
    """

    scores_PK: Tensor
    label_P: Tensor


def choose_pixels(mask_HW: Tensor, num_images: int, num_classes: int) -> Tensor:
    """Evenly spaced labeled pixels of an image: flat indices, int64, increasing.

    Args:
        mask_HW: The labels, on the CPU.
        num_images: Number of validation images, which share ``SCORES_IN_TOTAL``.
        num_classes: K.
    """
    labeled_P = (mask_HW.flatten() != IGNORE).nonzero()[:, 0]
    count = max(1, SCORES_IN_TOTAL // (num_images * num_classes))
    if len(labeled_P) <= count:
        return labeled_P
    return labeled_P[torch.arange(count) * len(labeled_P) // count]


def top_probability(scores: Tensor, top: Tensor, temperature: float) -> Tensor:
    """The largest probability ``max softmax(scores / T)``, which is ``1 / sum exp((scores - max) / T)``.

    Args:
        scores: Logits, or logarithms of probabilities, by class in dimension 1.
        top: The largest of each pixel, in dimension 1.
        temperature: T.

    Returns:
        As ``scores``, without dimension 1.
    """
    return (scores - top).div_(temperature).exp_().sum(1).reciprocal_()


def fit_temperature(scores_PK: Tensor, label_P: Tensor) -> float:
    """The temperature of the smallest mean negative log-likelihood, by a golden-section search over its logarithm.

    The likelihood is log-concave in 1/T, so there is one minimum. It is sought within ``TEMPERATURES``. The loss is at
    most that of T = 1, which is compared too, since the search ends at a tolerance.
    """
    true_P = scores_PK.gather(1, label_P[:, None])[:, 0]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((torch.logsumexp(scores_PK * scale, 1) - true_P * scale).double().mean())

    low, high = map(math.log, TEMPERATURES)
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [loss(each) for each in inner]
    while high - low > _TOLERANCE:
        if losses[0] <= losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - _GOLDEN * (high - low)
            losses[0] = loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + _GOLDEN * (high - low)
            losses[1] = loss(inner[1])
    return min(1.0, round(math.exp((low + high) / 2), 4), key=lambda temperature: loss(math.log(temperature)))


def expected_calibration_error(confidence_P: Tensor, correct_P: Tensor) -> float:
    """``sum_m |B_m| / n * |accuracy(B_m) - confidence(B_m)|`` over 15 bins ``((m-1)/15, m/15]`` (Eq. 3).

    Args:
        confidence_P: Probabilities of the predicted classes.
        correct_P: Whether they are the true ones, bool.
    """
    bin_P = (confidence_P.double() * BINS).ceil().long().clamp(1, BINS) - 1
    gap_M = torch.bincount(bin_P, weights=correct_P.double() - confidence_P.double(), minlength=BINS)
    return float(gap_M.abs().sum() / len(confidence_P))


def measure_calibration(images: Mapping[int, PixelScores], temperature: float | None) -> dict[str, float | None]:
    """The temperature, and the expected calibration error with T = 1 (``ece_before``) and with it (``ece``).

    Args:
        images: Pixels of the validation images, by position.
        temperature: T; None: it is fitted on the images at even positions.

    Returns:
        Values are None without labeled pixels to compute them from.
    """
    fitted, judged = ([images[place] for place in sorted(images) if place % 2 == half] for half in (0, 1))
    if temperature is None and (pair := _joined(fitted)) is not None:
        temperature = fit_temperature(pair.scores_PK, pair.label_P)
    found: dict[str, float | None] = {"temperature": temperature, "ece_before": None, "ece": None}
    if (pair := _joined(judged)) is not None and temperature is not None:
        top_P1, class_P1 = pair.scores_PK.max(1, keepdim=True)
        correct_P = class_P1[:, 0] == pair.label_P
        for name, each in (("ece_before", 1.0), ("ece", temperature)):
            found[name] = expected_calibration_error(top_probability(pair.scores_PK, top_P1, each), correct_P)
    return found


def _joined(images: Sequence[PixelScores]) -> PixelScores | None:
    if sum(len(image.label_P) for image in images) == 0:
        return None
    return PixelScores(torch.cat([image.scores_PK for image in images]), torch.cat([image.label_P for image in images]))
