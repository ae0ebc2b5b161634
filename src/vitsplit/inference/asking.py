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
    cards: Mapping[str, tuple[Path, Card]], language_weights: str | Path | None
) -> dict[str, tuple[Path, Card]]:
    """Bundles whose cards say where the language model is now.

    Args:
        cards: Folders and cards by the bundles' names.
        language_weights: Folder of the language model; None: where it was in training, the hub's cache, or the hub.

    Raises:
        ConfigError: There is a folder, and no bundle with a language model.
        WeightsError: There is none, and the one of the training is gone.
    """
    if language_weights is not None and not names_to_ask({name: card for name, (_, card) in cards.items()}):
        tasks = ", ".join(f"{name}: {card.task}" for name, (_, card) in cards.items())
        raise ConfigError(f"--language-weights {language_weights}: no bundle here has a language model ({tasks}).")
    return {name: (folder, _located(card, folder, language_weights)) for name, (folder, card) in cards.items()}


def _located(card: Card, folder: Path, language_weights: str | Path | None) -> Card:
    task = card.config.task
    if not isinstance(task, VqaConfig):
        return card
    if language_weights is not None:
        task = replace(task, language_weights=str(language_weights))
        return replace(card, config=replace(card.config, task=task))
    if task.language_weights is not None and not Path(task.language_weights).exists():
        raise WeightsError(
            f"{folder}: trained with a language model read from {task.language_weights}, which is not on this machine. "
            "Say where it is: --language-weights PATH (language_weights=PATH)."
        )
    return card


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
