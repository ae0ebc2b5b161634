"""Predictions of visual question answering: an image that can be queried.

Shapes: H W pixels.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitsplit.tasks.prediction import ColumnType, Prediction
from vitsplit.tasks.vqa.generate import Answerer
from vitsplit.tasks.vqa.prompts import Turn


class VqaPrediction(Prediction):
    """An image with its visual tokens, which are shared by all questions.

    Args:
        image: (H, W, 3) uint8, RGB.
        answerer: Generates the answers.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        asked: Questions and answers so far.
        answerer: Generates the answers.

    Example:
        >>> prediction = vitsplit.load("runs/vqa").predict("desk.jpg")["vqa"]  # doctest: +SKIP
        >>> prediction.ask("What is on the desk?")  # doctest: +SKIP
        'a lamp'
        >>> prediction.ask("What color is it?", history=prediction.asked)  # doctest: +SKIP
        'red'
    """

    column_types: ClassVar[Mapping[str, ColumnType]] = {"questions": "texts", "answers": "texts"}

    def __init__(self, image: NDArray[np.uint8], answerer: Answerer) -> None:
        self.image = image
        self.answerer = answerer
        self.asked: list[Turn] = []

    def ask(self, question: str, *, history: Sequence[Turn] = (), max_new_tokens: int | None = None) -> str:
        """Answers a question.

        Args:
            question: The question.
            history: Previous turns of the conversation.
            max_new_tokens: Length limit in tokens; None: the bundle's setting.

        Returns:
            The answer.
        """
        answer = self.answerer.continue_conversation(question, history, max_new_tokens=max_new_tokens)
        self.asked.append(Turn(question, answer))
        return answer

    def ask_many(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        """Answers several independent questions in batches.

        Args:
            questions: The questions.
            max_new_tokens: Length limit of an answer in tokens; None: the bundle's setting.

        Returns:
            One answer per question.
        """
        answers = self.answerer.answer(questions, max_new_tokens=max_new_tokens)
        self.asked += [Turn(question, answer) for question, answer in zip(questions, answers, strict=True)]
        return answers

    def stream(
        self, question: str, *, history: Sequence[Turn] = (), max_new_tokens: int | None = None
    ) -> Generator[str, None, None]:
        """Streams the answer. Closing the iterator stops it; the question is then not added to ``asked``.

        Args:
            question: The question.
            history: Previous turns of the conversation.
            max_new_tokens: Length limit in tokens; None: the bundle's setting.

        Yields:
            Pieces of the answer.
        """
        pieces = []
        with contextlib.closing(self.answerer.stream(question, history, max_new_tokens=max_new_tokens)) as stream:
            for piece in stream:
                pieces.append(piece)
                yield piece
        self.asked.append(Turn(question, "".join(pieces).strip()))

    def overlay(self) -> Image.Image:
        """The image with questions and answers drawn at its bottom."""
        picture = Image.fromarray(self.image).convert("RGB")
        size = max(10, picture.height // 24)
        font = ImageFont.load_default(size)
        lines = [_shortened(f"{turn.question}  {turn.answer}", font, picture.width - size) for turn in self.asked]
        lines = lines[-max(1, picture.height // (2 * size)) :]
        height = int(len(lines) * size * 1.3 + size / 2) if lines else 0
        black = Image.new("RGB", (picture.width, height), "black")
        top = picture.height - height
        picture.paste(Image.blend(picture.crop((0, top, picture.width, picture.height)), black, 0.6), (0, top))
        draw = ImageDraw.Draw(picture)
        for index, line in enumerate(lines):
            draw.text((size / 2, top + size / 4 + index * size * 1.3), line, font=font, fill="white")
        return picture

    def save(self, folder: str | Path, name: str = "prediction") -> tuple[Path, Path]:
        """Writes questions and answers, and the overlay, to files.

        Args:
            folder: Output folder; created if missing.
            name: Prefix of the file names.

        Returns:
            ``NAME_answers.json``, a list of question and answer, and ``NAME_answers.jpg``, the overlay.
        """
        json_path, jpg_path = Path(folder) / f"{name}_answers.json", Path(folder) / f"{name}_answers.jpg"
        json_path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": turn.question, "answer": turn.answer} for turn in self.asked]
        json_path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self.overlay().save(jpg_path, quality=92)
        return json_path, jpg_path

    def record(self) -> dict[str, Any]:
        """The fields of a table's row, see ``column_types``."""
        return {"questions": [turn.question for turn in self.asked], "answers": [turn.answer for turn in self.asked]}


def _shortened(text: str, font: Any, width: float) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip(" …") + "…" if len(text) > 3 else ""
    return text
