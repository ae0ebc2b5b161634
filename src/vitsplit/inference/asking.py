"""Questions to bundles: which bundle is asked, where its language model is, and about which pixels.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from vitsplit.bundle import Card
from vitsplit.data.images import read_image
from vitsplit.errors import ConfigError, WeightsError
from vitsplit.files import shown
from vitsplit.inference.strips import ImageStrips, is_large
from vitsplit.tasks.vqa.config import VqaConfig

TASK = "vqa"
"""The task whose bundles can be asked."""
LARGE_SIDE = 2048
"""A very large image is shrunk to this longest side as it is read: bundles bring every image to a few hundred."""


def names_to_ask(cards: Mapping[str, Card]) -> list[str]:
    """The names of the bundles that answer questions."""
    return [name for name, card in cards.items() if card.task == TASK]


def name_to_ask(cards: Mapping[str, Card]) -> str:
    """The name of the one bundle that answers questions.

    Raises:
        ConfigError: There is none, or there are several; the message names them.
    """
    names = names_to_ask(cards)
    if not names:
        others = ", ".join(f"{name}: {card.task}" for name, card in cards.items()) or "none"
        raise ConfigError(f"No bundle here answers questions ({others}). Load one of visual question answering (vqa).")
    if len(names) > 1:
        raise ConfigError(
            f"Several bundles answer questions ({', '.join(names)}). Ask one of them: model['{names[0]}'].ask(...), or "
            "on the command line name its run alone."
        )
    return names[0]


def with_language_model(
    cards: Mapping[str, tuple[Path, Card]], language_weights: str | Path | None, language_model: str | None = None
) -> dict[str, tuple[Path, Card]]:
    """Bundles whose cards say where the language model is now.

    A card names no folder that is opened, and no download but that of a language model that vitsplit knows.

    Args:
        cards: Folders and cards by the bundles' names.
        language_weights: Folder of the language model; None: the hub's cache, or the hub.
        language_model: Name of the language model, which may be taken from the hub; None: the card's, if it is known.

    Raises:
        ConfigError: There is a folder or a name, and no bundle with a language model.
        WeightsError: There is neither, and the card says a folder, or a name that is not known.
    """
    given = {"--language-weights": language_weights, "--language-model": language_model}
    for flag, value in given.items():
        if value is not None and not names_to_ask({name: card for name, (_, card) in cards.items()}):
            tasks = ", ".join(f"{name}: {card.task}" for name, (_, card) in cards.items())
            raise ConfigError(f"{flag} {value}: no bundle here has a language model ({tasks}).")
    return {
        name: (folder, _located(card, folder, language_weights, language_model))
        for name, (folder, card) in cards.items()
    }


def _located(card: Card, folder: Path, language_weights: str | Path | None, language_model: str | None) -> Card:
    task = card.config.task
    if not isinstance(task, VqaConfig):
        return card
    if language_weights is None and language_model is None:
        _check_known(card, folder)
    weights = None if language_weights is None else str(language_weights)
    task = replace(task, language_model=language_model or task.language_model, language_weights=weights)
    return replace(card, config=card.config.change(task=task))


def _check_known(card: Card, folder: Path) -> None:
    """Refuses to open or to fetch a language model on a card's word."""
    from vitsplit.tasks.vqa.language import PACKAGES, WIDTHS

    path = card.paths.get("--language-weights")
    if path is not None:
        raise WeightsError(
            f"{folder}: trained with a language model read from {shown(path, 1024)}. A bundle does not decide which "
            "folder is opened: say where it is, --language-weights PATH (language_weights=PATH)."
        )
    name = card.config.task.language_model
    if name not in {*PACKAGES, *WIDTHS}:
        raise WeightsError(
            f"{folder}: trained with the language model {shown(name, 1024)}, which vitsplit does not know. A bundle "
            "does not decide what is opened or downloaded: give its folder, --language-weights PATH "
            "(language_weights=PATH), or its name to have it from the hub, --language-model NAME (language_model=NAME)."
        )


def check_questions(questions: Iterable[str]) -> None:
    """Refuses questions that ask nothing.

    Raises:
        ConfigError: One is empty.
    """
    for question in questions:
        if not question.strip():
            raise ConfigError('--ask: a question is empty. Write it after the flag: --ask "What is on the desk?"')


def read_whole(path: str | Path) -> Tensor:
    """An image to ask about, however large: ``image_CHW`` uint8. A very large one is shrunk, not cut into tiles.

    Raises:
        DataError: It cannot be read.
        ConfigError: It is very large, and libvips, which reads such images, is not installed.
    """
    if not is_large(path):
        return read_image(path)
    height, width = ImageStrips(path).own_size
    strips = ImageStrips(path, max(LARGE_SIDE / max(height, width), 1 / min(height, width)))
    return strips.rows(0, strips.size[0])
