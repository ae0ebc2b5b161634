"""Inference with several heads on one backbone, with one pass per image and input size.

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
from vitsplit.inference.asking import vqa_head, with_language_model
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
    """Returns the forward pass of a backbone and a head, without gradients, in the backbone's precision.

    Args:
        backbone: The backbone.
        model: The head.
        source: Source of the taps; None: a separate pass of the backbone.
    """
    request = model.request(train=False)  # once, since the selection of a gate is read from the device

    @torch.inference_mode()
    def forward(image_BCHW: Tensor) -> tuple[Any, LayerTaps]:
        device = backbone.mean_C11.device
        taps = backbone(image_BCHW.to(device), request) if source is None else source(image_BCHW, request)
        with autocast(device.type, backbone.precision):
            return model(taps), taps

    return forward


class Predictions(dict[str, Any]):
    """Predictions of one image by head name.

    With a single head, attributes of its prediction are also available here: deprecated, with a ``FutureWarning``.

    Args:
        found: The predictions.
        passes: The backbone passes of the image or its batch, as in ``Predictor.passes``.

    Example:
        >>> predictions = vitsplit.load("runs/rooms", "runs/depth").predict("image.jpg")  # doctest: +SKIP
        >>> predictions["segmentation"].mask, predictions["depth"].depth  # doctest: +SKIP
    """

    def __init__(self, found: Mapping[str, Any], passes: PassCount) -> None:
        super().__init__(found)
        self.passes = passes

    def __getattr__(self, name: str) -> Any:
        if len(self) != 1 or name.startswith("__"):
            raise AttributeError(f"Predictions are a dictionary ({', '.join(self)}). Use predictions[HEAD].{name}.")
        ((head, prediction),) = self.items()
        value = getattr(prediction, name)
        warnings.warn(
            f".predict(image).{name} is deprecated and will be removed in the next version. Use "
            f".predict(image)[{head!r}].{name} instead.",
            FutureWarning,
            stacklevel=2,
        )
        return value


class LoadedHead:
    """A head of a ``Predictor``. Its own methods use separate backbone passes.

    Args:
        card: The bundle's card.
        task: The task, with its classes.
        backbone: The backbone.
        model: Method and decoder.

    Attributes:
        card: The bundle's card.
        task: The task, with its classes.
        backbone: The backbone.
        model: Method and decoder.
        forward: Forward pass of backbone and head, see ``make_forward``.

    Example:
        >>> head = vitsplit.load("runs/rooms")["segmentation"]  # doctest: +SKIP
        >>> head.predict("image.jpg").mask, head.card.metrics  # doctest: +SKIP
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
        """Prediction of one image at its own size, of the task's prediction type.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W); uint8, RGB.

        Returns:
            The prediction.

        Raises:
            DataError: The image cannot be read or has an unsupported format.
        """
        return self.predict_batch(to_image_tensor(image)[None])[0]

    def predict_batch(self, image_BCHW: Tensor) -> Sequence[Any]:
        """Predictions of a batch of images of one size.

        Args:
            image_BCHW: The images, (B, 3, H, W) uint8, RGB.

        Returns:
            One prediction per image.
        """
        return self.task.predict(self.forward, image_BCHW)

    @overload
    def ask(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> str: ...

    @overload
    def ask(self, image: Any, question: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]: ...

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> str | list[str]:
        """Answers one or several questions, see ``Predictor.ask``.

        Args:
            image: An image as for ``predict``.
            question: A question, or several, which are answered independently.
            max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.

        Returns:
            The answer; of several questions, a list.

        Raises:
            ConfigError: The head is for another task.
            DataError: The image cannot be read or has an unsupported format.
        """
        vqa_head({self.task.name: self.card})
        prediction = self.predict(image)
        if isinstance(question, str):
            return str(prediction.ask(question, max_new_tokens=max_new_tokens))
        return list(prediction.ask_many(question, max_new_tokens=max_new_tokens))


class Predictor(Mapping[str, LoadedHead]):
    """Mapping from names to heads on one backbone, see ``vitsplit.load``.

    Thread-safe; threads predict one image at a time. It cannot be pickled: load it in each process.

    Args:
        backbone: The backbone, on its device.
        precision: The precision; None: the common default precision of the bundles.

    Attributes:
        backbone: The backbone.
        passes: Number of backbone passes so far by input size and heads; those beyond the first thousand are counted as
            of size 0 x 0 without heads.

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
        """Deprecated attributes of a predictor with a single head, with a ``FutureWarning``."""
        if name not in ("card", "task", "model", "forward") or len(self) != 1:
            raise AttributeError(f"Predictor has no attribute {name}. Attributes of a head: predictor[HEAD].{name}.")
        ((head, loaded),) = self.items()
        warnings.warn(
            f"predictor.{name} is deprecated and will be removed in the next version. Use predictor[{head!r}].{name} "
            "instead.",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(loaded, name)

    def predict(self, image: Any) -> Predictions:
        """Predictions of one image at its own size by head name, equal to those of each head alone.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W); uint8, RGB.

        Returns:
            The predictions by head name.

        Raises:
            DataError: The image cannot be read or has an unsupported format.
        """
        return self.predict_batch(to_image_tensor(image)[None])[0]

    def predict_batch(self, image_BCHW: Tensor, heads: Iterable[str] | None = None) -> list[Predictions]:
        """Predictions of a batch of images (uint8, RGB).

        Args:
            image_BCHW: The images, (B, 3, H, W) uint8, RGB.
            heads: Names of the heads to run, whose layers alone are computed; None: all.

        Returns:
            The predictions of each image by head name.

        Raises:
            KeyError: There is no head of such a name.
        """
        with self._lock:
            names = tuple(self._heads if heads is None else heads)
            with self._shared.image(names):
                found = {name: self._heads[name].task.predict(self._forwards[name], image_BCHW) for name in names}
            passes = self._shared.passes
            add_passes(self.passes, passes)
        return [
            Predictions({name: several[index] for name, several in found.items()}, passes)
            for index in range(len(image_BCHW))
        ]

    @overload
    def ask(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> str: ...

    @overload
    def ask(self, image: Any, question: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]: ...

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> str | list[str]:
        """Answers one or several questions about an image with the head for visual question answering.

        Other heads are not run. To use the predictions of all heads from one pass, or to ask further questions without
        encoding the image again, call ``predictions = model.predict(image)`` and ``predictions["vqa"].ask(question)``.

        Args:
            image: An image as for ``predict``.
            question: A question, or several, which are answered independently.
            max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.

        Returns:
            The answer; of several questions, a list.

        Raises:
            ConfigError: There is no such head, or there are several: use ``model[name].ask(...)``.
            DataError: The image cannot be read or has an unsupported format.

        Example:
            >>> vitsplit.load("runs/vqa").ask("desk.jpg", "What is on the desk?")  # doctest: +SKIP
            'a lamp'
        """
        name = vqa_head({name: head.card for name, head in self.items()})
        return self[name].ask(image, question, max_new_tokens=max_new_tokens)

    def only(self, names: Iterable[str]) -> Predictor:
        """A predictor with some of the heads, which shares memory and the count of passes.

        Args:
            names: The names of the heads.

        Returns:
            The predictor.

        Raises:
            KeyError: There is no head of such a name.
        """
        subset = Predictor(self.backbone, self.precision)
        subset.passes, subset._lock = self.passes, self._lock
        for name in names:
            subset.register(name, self[name])
        return subset

    def describe_passes(self) -> str:
        """Describes the passes so far: ``1 pass at 252x336 for segmentation and depth; ...``."""
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
        """Adds the head of a bundle.

        Args:
            run: Run or bundle folder.
            name: Name of the head; None: its name in the run, or that of the run folder if the former is not unique.
            language_weights: See ``vitsplit.load``.
            language_model: See ``vitsplit.load``.

        Returns:
            Name of the head.

        Raises:
            BundleError: The bundle is invalid, or was trained on another backbone or in another precision.
            ConfigError: The name is not unique.
        """
        name, head = self.open(run, name, language_weights=language_weights, language_model=language_model)
        self.register(name, head)
        return name

    def open(
        self,
        run: str | Path,
        name: str | None = None,
        *,
        language_weights: str | Path | None = None,
        language_model: str | None = None,
    ) -> tuple[str, LoadedHead]:
        """Checks and loads a bundle as ``add`` does, without adding it.

        Args:
            run: See ``add``.
            name: See ``add``.
            language_weights: See ``vitsplit.load``.
            language_model: See ``vitsplit.load``.

        Returns:
            Name and head, for ``register``.

        Raises:
            BundleError, ConfigError: See ``add``.
        """
        folder = find_bundle(run)
        card = read_card(folder)
        own = head_name(folder, card)
        name = name or (own if own not in self else run_name(folder))
        if name in self:
            raise ConfigError(f"There is a head '{name}' already (heads: {', '.join(self)}). Give another name.")
        expected = self.backbone.info
        if card.backbone["weights_hash"] != expected.weights_hash:
            raise BundleError(
                f"{folder} was trained on {backbone_title(card)}, but the backbone in memory is {expected.name} "
                f"(weights {expected.weights_hash[:16]}). Load the bundle separately."
            )
        if self.precision is None:
            same_precision({**{each: head.card for each, head in self.items()}, name: card}, self._device)
        located = with_language_model({name: (folder, card)}, language_weights, language_model)
        check_weights(card, folder)
        return name, self._load(*located[name])

    def drop(self, name: str) -> None:
        """Removes a head.

        Args:
            name: Its name.

        Raises:
            ConfigError: There is no head of that name.
        """
        if name not in self:
            raise ConfigError(f"There is no head '{name}'. Heads: {', '.join(self) or 'none'}.")
        with self._lock:
            self._shared.detach(name)
            del self._heads[name], self._forwards[name]

    def attach(self, name: str, folder: Path, card: Card) -> None:
        """Loads the weights of a checked bundle, and adds its head.

        Args:
            name: A unique name.
            folder: The bundle.
            card: Its card.
        """
        self.register(name, self._load(folder, card))

    def _load(self, folder: Path, card: Card) -> LoadedHead:
        task, model = open_head(card, folder, self.backbone)
        return LoadedHead(card, task, self.backbone, model.to(self._device))

    def register(self, name: str, head: LoadedHead) -> None:
        """Adds a head on this backbone.

        Args:
            name: A unique name.
            head: The head, as of ``open`` or of another predictor on this backbone.
        """
        with self._lock:
            source = self._shared.attach(name, head.model.request(train=False))
            self._heads[name] = head
            self._forwards[name] = make_forward(self.backbone, head.model, source)

    @property
    def _device(self) -> torch.device:
        return self.backbone.mean_C11.device


def single_head(predictor: Predictor) -> LoadedHead:
    """The head of a predictor with a single head.

    Raises:
        BundleError: There are several heads.
    """
    if len(predictor) != 1:
        raise BundleError(f"There are {len(predictor)} heads: {', '.join(predictor)}. Use one of them.")
    (head,) = predictor.values()
    return head


def load_head(run: str | Path, **options: Any) -> LoadedHead:
    """Loads the head of a run with a single head, or of a bundle folder; for ``options`` see ``load_predictor``.

    Raises:
        BundleError: There is no bundle, or there are several; the message names them.
    """
    return single_head(load_predictor([find_bundle(run)], **options))


def not_picklable() -> NotPicklableError:
    """The error of pickling a predictor."""
    return NotPicklableError(
        "A predictor cannot be pickled or copied. Call vitsplit.load in each process, such as in the initializer of a "
        "pool, and send only images and predictions."
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
    """Loads bundles and their shared backbone, see ``vitsplit.load``.

    Args:
        runs: Run or bundle folders, or a mapping from names to them.
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
