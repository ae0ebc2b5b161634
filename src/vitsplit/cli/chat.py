"""``vitsplit chat RUN [IMAGE]``: a conversation about an image, in the terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from rich.console import Console

from vitsplit.cli.values import Loading
from vitsplit.config import MaxNewTokens
from vitsplit.errors import VitsplitError

if TYPE_CHECKING:
    from vitsplit.tasks.vqa.generate import Answerer
    from vitsplit.tasks.vqa.prompts import Turn


def chat(
    run: tyro.conf.Positional[Path],
    image: tyro.conf.Positional[str | None] = None,
    /,
    max_new_tokens: MaxNewTokens | None = None,
    loading: Loading = Loading(),  # noqa: B008  (frozen)
) -> int:
    """Have a conversation about an image with a bundle of visual question answering.

    Answers are streamed, and depend on the previous questions and answers.

      /image PATH   open another image and start a new conversation
      /clear        start a new conversation about the same image
      /quit         quit; also Ctrl-D

    Ctrl-C interrupts an answer; its beginning stays part of the conversation. Without IMAGE, the first line is the path
    of an image; if it is empty, the language model answers without an image. Input can be piped from a file.

    Examples:
        vitsplit chat runs/vqa desk.jpg
        printf 'What is on the desk?\\nWhat color is it?\\n' | vitsplit chat runs/vqa desk.jpg

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        image: The image.
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.
        loading: Loading options.
    """
    from vitsplit.inference.asking import vqa_head
    from vitsplit.inference.loading import read_bundles
    from vitsplit.inference.predictor import load_head

    bundles = read_bundles([str(run)])
    folder, card = bundles[vqa_head({name: card for name, (_, card) in bundles.items()})]
    predictor = load_head(folder, **loading.arguments())
    conversation = Chat(predictor, Console(highlight=False), max_new_tokens=max_new_tokens)
    if card.config.task.conversation == "plain":
        conversation.notify("This bundle was trained on captions only (plain) and ignores questions.")
    if image is not None:
        conversation.open_image(image)
    conversation.run()
    return 0


class Chat:
    """A conversation, with input from a terminal or a pipe.

    Args:
        predictor: A bundle of visual question answering.
        console: Console for answers; everything else is written to standard error.
        max_new_tokens: Maximum number of tokens of an answer; None: the bundle's setting.

    Attributes:
        history: Questions and answers of the current conversation.
    """

    def __init__(self, predictor: Any, console: Console, *, max_new_tokens: int | None = None) -> None:
        self.predictor = predictor
        self.console = console
        self.max_new_tokens = max_new_tokens
        self.history: list[Turn] = []
        self._answerer: Answerer | None = None  # None until the first line is read
        self._notes = Console(stderr=True, highlight=False)
        self._is_terminal = sys.stdin.isatty()
        with contextlib.suppress(ImportError):  # not available on all systems; adds line editing and history to `input`
            importlib.import_module("readline")

    def run(self) -> None:
        """Reads lines until the end of the input or ``/quit``."""
        self.notify("/image PATH, /clear, /quit; Ctrl-C interrupts an answer")
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            if word == "/quit":
                return
            try:
                self._handle_line(line, word, rest.strip())
            except VitsplitError as error:
                self._notes.print(f"error: {error}", style="red", markup=False, soft_wrap=True)

    def open_image(self, path: str) -> None:
        """Opens an image and starts a new conversation.

        Raises:
            DataError: The image cannot be read; the conversation is unchanged.
            ConfigError: The image is very large, and libvips is not installed.
        """
        from vitsplit.inference.asking import read_whole

        file = Path(path.strip().strip("'\"")).expanduser()
        self._answerer = self.predictor.predict(read_whole(file)).answerer
        self.history = []

    def notify(self, text: str) -> None:
        """Prints a notice, in a terminal only."""
        if self._is_terminal:
            self._notes.print(text, style="dim", markup=False, soft_wrap=True)

    def _handle_line(self, line: str, word: str, rest: str) -> None:
        if word == "/image" and rest:
            self.open_image(rest)
        elif word == "/clear" and not rest:
            self.history = []
        elif word in ("/image", "/clear") or (word.startswith("/") and self._answerer is not None):
            self._notes.print("Commands: /image PATH, /clear, /quit", markup=False)
        elif self._answerer is None:
            self._read_image_line(line)
        elif line:
            self._answer(self._answerer, line)

    def _read_image_line(self, line: str) -> None:
        """The first line is the path of the image, or empty for none."""
        from vitsplit.tasks.vqa.predict import answerer_without_image

        if line:
            self.open_image(line)
        else:
            self._answerer = answerer_without_image(self.predictor)

    def _answer(self, answerer: Answerer, question: str) -> None:
        from vitsplit.tasks.vqa.prompts import Turn

        answer = ""
        try:
            with contextlib.closing(
                answerer.stream(question, self.history, max_new_tokens=self.max_new_tokens)
            ) as pieces:
                for piece in pieces:
                    new = piece if answer else piece.lstrip()
                    answer += new
                    self.console.print(new, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            self.notify(" (interrupted)")
        self.console.print()
        self.history.append(Turn(question, answer.strip()))

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if not self._is_terminal:
            line = sys.stdin.readline()
            return line.strip() if line else None
        while True:
            try:
                return input("image (empty: none)> " if self._answerer is None else "> ").strip()
            except EOFError:
                self.console.print()
                return None
            except KeyboardInterrupt:
                self.notify("\n/quit or Ctrl-D to quit")
