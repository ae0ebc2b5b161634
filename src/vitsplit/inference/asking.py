"""Helpers for visual question answering: selection of the bundle, location of its language model, reading of images.

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
from vitsplit.tasks.vqa.language_models import LANGUAGE_MODELS

LARGE_SIDE = 2048
"""Very large images are scaled down to this longest side on reading; bundles resize images to a few hundred pixels."""


def vqa_heads(cards: Mapping[str, Card]) -> list[str]:
    """Names of the bundles for visual question answering."""
    return [name for name, card in cards.items() if card.config.task.answers_questions]


def vqa_head(cards: Mapping[str, Card]) -> str:
    """Name of the only bundle for visual question answering.

    Raises:
        ConfigError: There are none or several; the message names them.
    """
    names = vqa_heads(cards)
    if not names:
        others = ", ".join(f"{name}: {card.task}" for name, card in cards.items()) or "none"
        raise ConfigError(f"There is no bundle for vqa (bundles: {others}). Load one.")
    if len(names) > 1:
        raise ConfigError(
            f"There are several bundles for vqa ({', '.join(names)}). Use one of them: model['{names[0]}'].ask(...), "
            "or give only its run on the command line."
        )
    return names[0]


def with_language_model(
    cards: Mapping[str, tuple[Path, Card]], language_weights: str | Path | None, language_model: str | None = None
) -> dict[str, tuple[Path, Card]]:
    """Sets the location of the language model in the cards of bundles.

    Folders in cards are not opened, and only language models that vitsplit knows are downloaded.

    Args:
        cards: Folders and cards by bundle name.
        language_weights: Folder of the language model; None: the hub or its cache.
        language_model: Name of the language model on the hub; None: that of the card, if vitsplit knows it.

    Raises:
        ConfigError: A folder or name is given, but no bundle has a language model.
        WeightsError: Neither is given, and the card has a folder or an unknown name.
    """
    given = {"--language-weights": language_weights, "--language-model": language_model}
    for flag, value in given.items():
        if value is not None and not vqa_heads({name: card for name, (_, card) in cards.items()}):
            tasks = ", ".join(f"{name}: {card.task}" for name, (_, card) in cards.items())
            raise ConfigError(f"{flag} {value}: no bundle has a language model ({tasks}). Omit it.")
    return {
        name: (folder, _located(card, folder, language_weights, language_model))
        for name, (folder, card) in cards.items()
    }


def _located(card: Card, folder: Path, language_weights: str | Path | None, language_model: str | None) -> Card:
    task = card.config.task
    if not task.answers_questions:
        return card
    if language_weights is None and language_model is None:
        _check_known(card, folder)
    weights = None if language_weights is None else str(language_weights)
    task = replace(task, language_model=language_model or task.language_model, language_weights=weights)
    return replace(card, config=card.config.change(task=task))


def _check_known(card: Card, folder: Path) -> None:
    """Raises WeightsError if the card has a folder or a language model that vitsplit does not know."""
    path = card.paths.get("--language-weights")
    if path is not None:
        raise WeightsError(
            f"{folder}: trained with the language model in {shown(path, 1024)}. Paths in bundles are not opened: give "
            "its folder with --language-weights PATH (language_weights=PATH)."
        )
    name = card.paths.get("--language-model", card.config.task.language_model)
    if name not in LANGUAGE_MODELS:
        raise WeightsError(
            f"{folder}: trained with the language model {shown(name, 1024)}, which vitsplit does not know and "
            "does not download automatically. Give its folder with --language-weights PATH (language_weights=PATH), or "
            "its name on the hub with --language-model NAME (language_model=NAME)."
        )


def check_questions(questions: Iterable[str]) -> None:
    """Checks questions.

    Raises:
        ConfigError: A question is empty.
    """
    for question in questions:
        if not question.strip():
            raise ConfigError('--ask: the question is empty. Give a question, such as --ask "What is on the desk?"')


def read_whole(path: str | Path) -> Tensor:
    """Reads an image of any size as a whole: ``image_CHW`` uint8. Very large images are scaled down.

    Raises:
        DataError: The image cannot be read.
        ConfigError: The image is very large, and libvips is not installed.
    """
    if not is_large(path):
        return read_image(path)
    height, width = ImageStrips(path).own_size
    strips = ImageStrips(path, max(LARGE_SIDE / max(height, width), 1 / min(height, width)))
    return strips.rows(0, strips.size[0])
