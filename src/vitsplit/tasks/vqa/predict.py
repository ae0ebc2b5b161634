"""Answers of a loaded bundle to questions without image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitsplit.tasks.vqa.generate import Answerer


def ask_without_image(predictor: Any, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
    """Answers questions without image, for benchmarks.

    Args:
        predictor: A loaded bundle of this task.
        questions: The questions.
        max_new_tokens: Length limit in tokens; None: the bundle's setting.
    """
    return answerer_without_image(predictor).answer(questions, max_new_tokens=max_new_tokens)


def answerer_without_image(predictor: Any) -> Answerer:
    """An answerer for questions without image, with the bundle's language model.

    Args:
        predictor: A loaded bundle of this task.
    """
    return Answerer(
        predictor.model.decoder,
        predictor.task.prompter(),
        None,
        max_new_tokens=predictor.task.config.max_new_tokens,
        precision=predictor.backbone.precision,
    )
