"""What a bundle says about an image: nothing, until it is asked.

Shapes: H W pixels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitsplit.tasks.vqa.generate import Answerer
from vitsplit.tasks.vqa.prompts import Turn


class VqaPrediction:
    """An image that can be asked about. Its visual tokens are computed, and serve every question.

    Attributes:
        image: (H, W, 3) uint8, the image.
        asked: The questions so far, each with its answer.
        answerer: What answers them.
    """

    def __init__(self, image: NDArray[np.uint8], answerer: Answerer) -> None:
        self.image = image
        self.answerer = answerer
        self.asked: list[Turn] = []

    def ask(self, question: str, *, history: Sequence[Turn] = (), max_new_tokens: int | None = None) -> str:
        """The answer to a question.

        Args:
            question: The question.
            history: Questions and answers that it follows in one conversation.
            max_new_tokens: The most tokens of the answer; None: as the bundle says.
        """
        answer = self.answerer.continue_conversation(question, history, max_new_tokens=max_new_tokens)
        self.asked.append(Turn(question, answer))
        return answer

    def ask_many(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        """The answers to several questions, each as if it were asked alone, computed together."""
        answers = self.answerer.answer(questions, max_new_tokens=max_new_tokens)
        self.asked += [Turn(question, answer) for question, answer in zip(questions, answers, strict=True)]
        return answers

    def stream(
        self, question: str, *, history: Sequence[Turn] = (), max_new_tokens: int | None = None
    ) -> Generator[str, None, None]:
        """The answer in pieces, as they are written. Closing the iterator stops it, and it then counts as not asked."""
        pieces = []
        with contextlib.closing(self.answerer.stream(question, history, max_new_tokens=max_new_tokens)) as stream:
            for piece in stream:
                pieces.append(piece)
                yield piece
        self.asked.append(Turn(question, "".join(pieces).strip()))

    def overlay(self) -> Image.Image:
        """The image with what was asked and answered written over its foot, at the image's size."""
        picture = Image.fromarray(self.image).convert("RGB")
        size = max(10, picture.height // 24)
        font = ImageFont.load_default(size)
        lines = [_shortened(f"{turn.question}  {turn.answer}", font, picture.width - size) for turn in self.asked]
        lines = lines[-max(1, picture.height // (2 * size)) :]
        height = int(len(lines) * size * 1.3 + size / 2) if lines else 0
        veil = Image.new("RGB", (picture.width, height), "black")
        top = picture.height - height
        picture.paste(Image.blend(picture.crop((0, top, picture.width, picture.height)), veil, 0.6), (0, top))
        draw = ImageDraw.Draw(picture)
        for index, line in enumerate(lines):
            draw.text((size / 2, top + size / 4 + index * size * 1.3), line, font=font, fill="white")
        return picture

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes ``NAME_answers.json``, a list of question and answer, and ``NAME_answers.jpg``, the overlay."""
        json_path, jpg_path = Path(folder) / f"{name}_answers.json", Path(folder) / f"{name}_answers.jpg"
        json_path.parent.mkdir(parents=True, exist_ok=True)
        said = [{"question": turn.question, "answer": turn.answer} for turn in self.asked]
        json_path.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.overlay().save(jpg_path, quality=92)
        return json_path, jpg_path


def ask_without_image(predictor: Any, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
    """A bundle's answers to questions on no image, for benchmarks that have some.

    Args:
        predictor: A loaded bundle of this task.
        questions: The questions.
        max_new_tokens: The most tokens of an answer; None: as the bundle says.
    """
    return answerer_without_image(predictor).answer(questions, max_new_tokens=max_new_tokens)


def answerer_without_image(predictor: Any) -> Answerer:
    """What answers a bundle's questions on no image: the language model as the bundle tuned it.

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


def _shortened(text: str, font: Any, width: float) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip(" …") + "…" if len(text) > 3 else ""
    return text
