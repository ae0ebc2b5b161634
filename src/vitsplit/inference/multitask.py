"""Several bundles on one backbone: in memory once, and one pass per image and input size.

Shapes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from vitsplit.backbone.frozen import Backbone
from vitsplit.bundle import Card, find_bundle, find_bundles, read_card
from vitsplit.data.images import to_image_tensor
from vitsplit.engine.config import Precision
from vitsplit.engine.precision import DTYPES, Resolved, resolve_precision
from vitsplit.errors import BundleError, ConfigError
from vitsplit.inference.asking import name_to_ask, with_language_model
from vitsplit.inference.predictor import (
    Predictor,
    backbone_of,
    check_weights,
    choose_device,
    make_forward,
    not_picklable,
    open_model,
    precision_of,
)
from vitsplit.inference.shared_pass import PassCount, SharedPass, add_passes, describe_passes
from vitsplit.tasks.base import Forward


class MultiPredictor(Mapping[str, Predictor]):
    """What ``vitsplit.load`` returns for several bundles: a mapping of their names to predictors on one backbone.

    Several threads may predict with it, one image after the other. In several processes, load it in each: it cannot be
    pickled.

    A predictor out of the mapping can be used on its own too (``model["depth"].predict(image)``); its taps then are
    not shared.

    Args:
        backbone: The backbone, on its device.
        precision: What was asked for; None: what every bundle asks for, which must be the same.

    Attributes:
        backbone: The one backbone.
        passes: How many passes of which size served which bundles, over everything predicted so far; sizes beyond the
            first thousand are counted together, as 0 x 0.

    Example:
        >>> model = vitsplit.load("runs/rooms", "runs/depth")  # doctest: +SKIP
        >>> answers = model.predict("image.jpg")  # doctest: +SKIP
        >>> answers["segmentation"].mask, answers["depth"].depth  # doctest: +SKIP
        >>> model.describe_passes()  # doctest: +SKIP
        '1 pass at 252x336 for segmentation and depth'
    """

    def __init__(self, backbone: Backbone, precision: Precision | None = None) -> None:
        self.backbone = backbone
        self.precision = precision
        self.passes: PassCount = Counter()
        self._lock = threading.RLock()
        self._shared = SharedPass(backbone)
        self._bundles: dict[str, Predictor] = {}
        self._forwards: dict[str, Forward] = {}

    def __reduce__(self) -> NoReturn:
        raise not_picklable("predictor of several bundles")

    def __getitem__(self, name: str) -> Predictor:
        return self._bundles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundles)

    def __len__(self) -> int:
        return len(self._bundles)

    def predict(self, image: Any) -> dict[str, Any]:
        """Every bundle's typed prediction for one image, by the bundle's name; each as if it were loaded alone.

        Args:
            image: A path, a PIL image, a numpy array (H, W, 3) or (H, W), or a tensor (3, H, W).

        Raises:
            DataError: The image cannot be read or has an unknown form.
        """
        return self.predict_batch(to_image_tensor(image)[None])[0]

    def predict_batch(self, image_BCHW: Tensor) -> list[dict[str, Any]]:
        """The same for images (uint8, RGB) of one size."""
        with self._lock:
            with self._shared.image():
                answers = {
                    name: bundle.task.predict(self._forwards[name], image_BCHW)
                    for name, bundle in self._bundles.items()
                }
            add_passes(self.passes, self._shared.passes)
        return [{name: several[index] for name, several in answers.items()} for index in range(len(image_BCHW))]

    @overload
    def ask(self, image: Any, question: str, *, max_new_tokens: int | None = None) -> str: ...

    @overload
    def ask(self, image: Any, question: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]: ...

    def ask(self, image: Any, question: str | Sequence[str], *, max_new_tokens: int | None = None) -> str | list[str]:
        """Asks the one bundle of visual question answering, and runs no other: see ``Predictor.ask``.

        To have all bundles' predictions of the image too, from one pass: ``answers = model.predict(image)``, and
        then ``answers["vqa"].ask(question)``.

        Raises:
            ConfigError: No bundle answers questions, or several do: ask one of them, ``model[name].ask(...)``.
            DataError: The image cannot be read or has an unknown form.
        """
        return self[name_to_ask({name: bundle.card for name, bundle in self.items()})].ask(
            image, question, max_new_tokens=max_new_tokens
        )

    def only(self, names: Iterable[str]) -> MultiPredictor:
        """Some of the bundles, in the same memory. Their passes count here too."""
        some = MultiPredictor(self.backbone, self.precision)
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
            name: What to call it; None: its task's name, or the run folder's where that name is taken.
            language_weights: See ``load_several``.
            language_model: See ``load_several``.

        Returns:
            Its name.

        Raises:
            BundleError: It is broken, or was trained on another backbone or for another precision.
            ConfigError: The name is taken.
        """
        folder = find_bundle(run)
        card = read_card(folder)
        name = name or (card.task if card.task not in self else run_name(folder))
        if name in self:
            raise ConfigError(f"There is a bundle '{name}' already ({', '.join(self)}): give this one another name.")
        expected = self.backbone.info
        if card.backbone["weights_hash"] != expected.weights_hash:
            raise BundleError(
                f"{folder} was trained on {_backbone(card)}; in memory is {expected.name} (weights "
                f"{expected.weights_hash[:16]}). One backbone serves only bundles that were trained on it."
            )
        if self.precision is None:
            _same_precision({**{each: bundle.card for each, bundle in self.items()}, name: card}, self._device)
        located = with_language_model({name: (folder, card)}, language_weights, language_model)
        check_weights(card, folder)
        self.attach(name, *located[name])
        return name

    def drop(self, name: str) -> None:
        """Takes a bundle out of memory; the backbone stays.

        Raises:
            ConfigError: There is no bundle of that name.
        """
        if name not in self:
            raise ConfigError(f"There is no bundle '{name}'. Bundles: {', '.join(self) or 'none'}.")
        with self._lock:
            self._shared.detach(name)
            del self._bundles[name], self._forwards[name]

    def attach(self, name: str, folder: Path, card: Card) -> None:
        """Reads the weights of a bundle whose card was checked, and takes it in under a free name."""
        task, model = open_model(card, folder, self.backbone)
        self._take(name, Predictor(card, task, self.backbone, model.to(self._device)))

    def _take(self, name: str, bundle: Predictor) -> None:
        with self._lock:
            source = self._shared.attach(name, bundle.model.request(train=False))
            self._bundles[name] = bundle
            self._forwards[name] = make_forward(self.backbone, bundle.model, source)

    @property
    def _device(self) -> torch.device:
        return self.backbone.mean_C11.device


def load_several(
    runs: Sequence[str | Path] | Mapping[str, str | Path],
    *,
    weights: str | Path | None = None,
    language_weights: str | Path | None = None,
    language_model: str | None = None,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
) -> MultiPredictor:
    """Loads bundles and the one backbone that all of them were trained on.

    Args:
        runs: Run or bundle folders (a joint run means all of its bundles), or a mapping of your own names to them.
            Without names of your own a bundle is called by its task, and bundles of the same task by their run folders.
        weights: File or folder of the backbone's weights, where they are neither cached nor to be fetched.
        language_weights: Folder of the language model of the bundles that have one.
        language_model: Its name, where it is none of those that vitsplit knows and may be taken from the hub.
        device: Where to compute; None: the first GPU, else the processor.
        precision: What to compute in; None: what the bundles agree on, see ``load_predictor``.

    Raises:
        BundleError: A bundle is broken, or they were trained on different backbones or for different precisions.
        ConfigError: Two would have the same name, or ``language_weights`` of bundles without a language model.
        WeightsError: The weights of the backbone or of a language model cannot be had.
    """
    bundles = with_language_model(read_bundles(runs), language_weights, language_model)
    device = choose_device(device)
    for folder, card in bundles.values():
        check_weights(card, folder)
    if precision is None:
        resolved = _same_precision({name: card for name, (_, card) in bundles.items()}, device)
    else:
        resolved = resolve_precision(precision, device)
    folder, card = next(iter(bundles.values()))
    model = MultiPredictor(backbone_of(card, folder, weights).to(device), precision)
    for name, (folder, card) in bundles.items():
        model.attach(name, folder, card)
    model.backbone.set_precision(DTYPES[resolved])
    return model


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
                f"{folders[0]} was trained on {_backbone(cards[0])}, but {folder} on {_backbone(card)}. "
                "One backbone serves only bundles that were trained on it: use these one after the other."
            )
    return {name: (folder, card) for name, folder, card in zip(names, folders, cards, strict=True)}


def bundle_names(folders: Sequence[Path], cards: Sequence[Card]) -> list[str]:
    """The task's name, or where several bundles have the same task the run folder's.

    Raises:
        ConfigError: Two names are the same.
    """
    count = Counter(card.task for card in cards)
    names = [
        card.task if count[card.task] == 1 else run_name(folder) for folder, card in zip(folders, cards, strict=True)
    ]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ConfigError(
                f"{folders[names.index(name)]} and {folders[index]} would both be called '{name}'. Rename a folder, or "
                "in Python give names of your own: load({'first': RUN_A, 'second': RUN_B})."
            )
    return names


def run_name(folder: Path) -> str:
    """What people call a bundle: the name of its run folder, or of the bundle folder outside of a run."""
    folder = folder.resolve()
    if folder.parent.name in ("best", "last"):  # a joint run has one folder per task in them
        folder = folder.parent
    return folder.parent.name if folder.name in ("best", "last") else folder.name


def _same_precision(cards: Mapping[str, Card], device: torch.device) -> Resolved:
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


def _backbone(card: Card) -> str:
    return f"{card.backbone_title} (weights {card.backbone['weights_hash'][:16]})"
