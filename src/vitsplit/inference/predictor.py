"""Heads on one backbone, ready to use: in memory once, and one pass per image and input size.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from vitsplit.backbone.backbone import Backbone
from vitsplit.bundle import Card, find_bundle, read_card
from vitsplit.config import Precision
from vitsplit.data.images import to_image_tensor
from vitsplit.errors import BundleError, ConfigError, NotPicklableError
from vitsplit.inference.asking import name_to_ask, with_language_model
from vitsplit.inference.loading import (
    backbone_of,
    backbone_title,
    check_weights,
    choose_device,
    head_name,
    open_head,
    read_bundles,
    run_name,
    same_precision,
)
from vitsplit.inference.shared_pass import PassCount, SharedPass, TapSource, add_passes, describe_passes
from vitsplit.model import Head
from vitsplit.precision import DTYPES, autocast, resolve_precision
from vitsplit.tasks.base import Forward, Task
from vitsplit.types import LayerTaps


def make_forward(backbone: Backbone, model: Head, source: TapSource | None = None) -> Forward:
    """One pass of the backbone and one of a head, without gradient, in the backbone's precision.

    Args:
        backbone: The backbone.
        model: The head.
        source: Where the taps come from; None: a pass of the backbone for this head alone.
    """

    request = model.request(train=False)  # once: a gate's choice of layers is read from the device

    request = model.request(train=False)  # once: a gate's choice of layers is read from the device

    @torch.inference_mode()
    def forward(image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        device = backbone.mean_C11.device
        taps = backbone(image_BCHW.to(device), request) if source is None else source(image_BCHW, request)
        with autocast(device.type, backbone.precision):
            return model(taps), taps

    return forward


class Predictions(dict[str, Any]):
    """Predictions of one image, by the heads' names.

    For one version, attributes of the prediction of an only head are found here too, with a ``FutureWarning``.
    """

    def __getattr__(self, name: str) -> Any:
        if len(self) != 1 or name.startswith("__"):
            raise AttributeError(f"Predictions are by head ({', '.join(self)}): write predictions[HEAD].{name}.")
        ((head, prediction),) = self.items()
        value = getattr(prediction, name)
        warnings.warn(
            f"predict() returns a dictionary by head: write .predict(image)[{head!r}].{name} in place of "
            f".predict(image).{name}, which the next version will not know.",
            FutureWarning,
            stacklevel=2,
        )
        return value


class LoadedHead:
    """One head of a ``Predictor``, which can be used on its own too; its taps then are not shared.

    Attributes:
        card: The bundle's card.
        task: The task, with its classes.
        backbone: The backbone.
        model: Method and decoder.
        forward: A pass of the backbone and the head, see ``make_forward``.
    """

    def __init__(self, card: Card, task: Task, backbone: Backbone, model: Head) -> None:
        self.card = card
        self.task = task
        self.backbone = backbone
        self.model = model.eval()
        self.forward = make_forward(backbone, self.model)

    def __reduce__(self) -> NoReturn:
        raise not_picklable()

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
        """See ``Predictor.ask``."""
        name_to_ask({self.task.name: self.card})
        prediction = self.predict(image)
        if isinstance(question, str):
            return str(prediction.ask(question, max_new_tokens=max_new_tokens))
        return list(prediction.ask_many(question, max_new_tokens=max_new_tokens))


class Predictor(Mapping[str, LoadedHead]):
    """What ``vitsplit.load`` returns: a mapping of names to heads on one backbone.

    Several threads may predict with it, one image after the other. In several processes, load it in each: it cannot be
    pickled.

    Args:
        backbone: The backbone, on its device.
        precision: What was asked for; None: what every bundle asks for, which must be the same.

    Attributes:
        backbone: The one backbone.
        passes: How many passes of which size served which heads, over everything predicted so far; sizes beyond the
            first thousand are counted together, as 0 x 0.

    Example:
        >>> model = vitsplit.load("runs/rooms", "runs/depth")  # doctest: +SKIP
        >>> predictions = model.predict("image.jpg")  # doctest: +SKIP
        >>> predictions["segmentation"].mask, predictions["depth"].depth  # doctest: +SKIP
        >>> model.describe_passes()  # doctest: +SKIP
        '1 pass at 252x336 for segmentation and depth'
    """

    def __init__(self, backbone: Backbone, precision: Precision | None = None) -> None:
        self.backbone = backbone
        self.precision = precision
        self.passes: PassCount = Counter()
        self._lock = threading.RLock()
        self._shared = SharedPass(backbone)
        self._heads: dict[str, LoadedHead] = {}
        self._forwards: dict[str, Forward] = {}

    def __reduce__(self) -> NoReturn:
        raise not_picklable()

    def __getitem__(self, name: str) -> LoadedHead:
        return self._heads[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __len__(self) -> int:
        return len(self._heads)

    def __getattr__(self, name: str) -> Any:
        """For one version: what the predictor of one bundle had, with a ``FutureWarning``."""
        if name not in ("card", "task", "model", "forward") or len(self) != 1:
            raise AttributeError(f"A predictor has no attribute {name}. Its heads may: predictor[HEAD].{name}.")
        ((head, loaded),) = self.items()
        warnings.warn(
            f"A predictor is a mapping of heads: write predictor[{head!r}].{name} in place of predictor.{name}, which "
            "the next version will not know.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(loaded, name)

    def predict(self, image: Any) -> Predictions:
        """Every head's typed prediction for one image at its own size, by the head's name; each as if loaded alone.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W).

        Raises:
            DataError: The image cannot be read or has an unknown form.
        """
        return self.predict_batch(to_image_tensor(image)[None])[0]

    def predict_batch(self, image_BCHW: Tensor) -> list[Predictions]:
        """The same for images (uint8, RGB) of one size."""
        with self._lock:
            with self._shared.image():
                found = {
                    name: head.task.predict(self._forwards[name], image_BCHW) for name, head in self._heads.items()
                }
            add_passes(self.passes, self._shared.passes)
        return [
            Predictions({name: several[index] for name, several in found.items()}) for index in range(len(image_BCHW))
        ]

    @overload
    def ask(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> str: ...

    @overload
    def ask(self, image: Any, question: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]: ...

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> str | list[str]:
        """The answer of the one head of visual question answering to a question on an image, or those to several.

        No other head runs. To have all heads' predictions of the image too, from one pass, or to ask more later
        without looking at the image again: ``predictions = model.predict(image)``, and then
        ``predictions["vqa"].ask(question)``.

        Args:
            image: What ``predict`` takes.
            question: A question, or several; each is answered as if it were asked alone.
            max_new_tokens: The most tokens of an answer; None: as the bundle says.

        Raises:
            ConfigError: No head answers questions, or several do: ask one of them, ``model[name].ask(...)``.
            DataError: The image cannot be read or has an unknown form.

        Example:
            >>> vitsplit.load("runs/vqa").ask("desk.jpg", "What is on the desk?")  # doctest: +SKIP
            'a lamp'
        """
        name = name_to_ask({name: head.card for name, head in self.items()})
        return self[name].ask(image, question, max_new_tokens=max_new_tokens)

    def only(self, names: Iterable[str]) -> Predictor:
        """Some of the heads, in the same memory. Their passes count here too."""
        some = Predictor(self.backbone, self.precision)
        some.passes, some._lock = self.passes, self._lock
        for name in names:
            some._take(name, self[name])
        return some

    def describe_passes(self) -> str:
        """The passes so far in words: ``1 pass at 252x336 for segmentation and depth; ...``."""
        with self._lock:
            return describe_passes(self.passes)

    def add(
        self,
        run: str | Path,
        name: str | None = None,
        *,
        language_weights: str | Path | None = None,
        language_model: str | None = None,
    ) -> str:
        """Adds a bundle to the backbone in memory.

        Args:
            run: Run or bundle folder.
            name: What to call it; None: its name in its run, or the run folder's where that name is taken.
            language_weights: See ``load_predictor``.
            language_model: See ``load_predictor``.

        Returns:
            Its name.

        Raises:
            BundleError: It is broken, or was trained on another backbone or for another precision.
            ConfigError: The name is taken.
        """
        folder = find_bundle(run)
        card = read_card(folder)
        own = head_name(folder, card)
        name = name or (own if own not in self else run_name(folder))
        if name in self:
            raise ConfigError(f"There is a bundle '{name}' already ({', '.join(self)}): give this one another name.")
        expected = self.backbone.info
        if card.backbone["weights_hash"] != expected.weights_hash:
            raise BundleError(
                f"{folder} was trained on {backbone_title(card)}; in memory is {expected.name} (weights "
                f"{expected.weights_hash[:16]}). One backbone serves only bundles that were trained on it."
            )
        if self.precision is None:
            same_precision({**{each: head.card for each, head in self.items()}, name: card}, self._device)
        located = with_language_model({name: (folder, card)}, language_weights, language_model)
        check_weights(card, folder)
        self.attach(name, *located[name])
        return name

    def drop(self, name: str) -> None:
        """Takes a head out of memory; the backbone stays.

        Raises:
            ConfigError: There is no head of that name.
        """
        if name not in self:
            raise ConfigError(f"There is no bundle '{name}'. Bundles: {', '.join(self) or 'none'}.")
        with self._lock:
            self._shared.detach(name)
            del self._heads[name], self._forwards[name]

    def attach(self, name: str, folder: Path, card: Card) -> None:
        """Reads the weights of a bundle whose card was checked, and takes it in under a free name."""
        task, model = open_head(card, folder, self.backbone)
        self._take(name, LoadedHead(card, task, self.backbone, model.to(self._device)))

    def _take(self, name: str, head: LoadedHead) -> None:
        with self._lock:
            source = self._shared.attach(name, head.model.request(train=False))
            self._heads[name] = head
            self._forwards[name] = make_forward(self.backbone, head.model, source)

    @property
    def _device(self) -> torch.device:
        return self.backbone.mean_C11.device


def the_head(predictor: Predictor) -> LoadedHead:
    """The only head of a predictor.

    Raises:
        BundleError: There are several.
    """
    if len(predictor) != 1:
        raise BundleError(f"There are {len(predictor)} heads here. Name one of them: {', '.join(predictor)}.")
    (head,) = predictor.values()
    return head


def load_head(run: str | Path, **options: Any) -> LoadedHead:
    """The one head of a run or bundle folder, with ``options`` of ``load_predictor``.

    Raises:
        BundleError: There is none, or there are several; the message names them.
    """
    return the_head(load_predictor([find_bundle(run)], **options))


def not_picklable() -> NotPicklableError:
    """The error of who sends a predictor to another process."""
    return NotPicklableError(
        "A predictor cannot be sent to another process or copied: its backbone's weights would be. Call vitsplit.load "
        "in each process, as the initializer of a pool does, and send images and predictions."
    )


def load_predictor(
    runs: Sequence[str | Path] | Mapping[str, str | Path],
    *,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> Predictor:
    """Loads bundles and the one backbone that all of them were trained on, see ``vitsplit.load``.

    Args:
        runs: Run or bundle folders, or a mapping of your own names to them.
        weights: See ``vitsplit.load``.
        language_weights: See ``vitsplit.load``.
        language_model: See ``vitsplit.load``.
        device: See ``vitsplit.load``.
        precision: See ``vitsplit.load``.

    Raises:
        BundleError, ConfigError, WeightsError: See ``vitsplit.load``.
    """
    bundles = with_language_model(read_bundles(runs), language_weights, language_model)
    device = choose_device(device)
    for folder, card in bundles.values():
        check_weights(card, folder)
    if precision is None:
        resolved = same_precision({name: card for name, (_, card) in bundles.items()}, device)
    else:
        resolved = resolve_precision(precision, device)
    folder, card = next(iter(bundles.values()))
    model = Predictor(backbone_of(card, folder, weights).to(device), precision)
    for name, (folder, card) in bundles.items():
        model.attach(name, folder, card)
    model.backbone.set_precision(DTYPES[resolved])
    return model
