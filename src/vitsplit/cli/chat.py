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

    Answers are written as they come, and every question is understood in the light of those before it.

      /image PATH   look at another image, and begin a new conversation
      /clear        begin a new conversation about the same image
      /quit         end; so does Ctrl-D

    Ctrl-C stops an answer; what was said of it stays part of the conversation. Without an image the first line names
    one; an empty line means none: the language model then answers from text alone. Lines can also come from a file or a
    pipe.

    Examples:
        vitsplit chat runs/vqa desk.jpg
        printf 'What is on the desk?\\nWhat colour is it?\\n' | vitsplit chat runs/vqa desk.jpg

    Args:
        run: A run folder (its best bundle) or a bundle folder.
        image: The image to talk about.
        max_new_tokens: The most tokens of an answer; None: the bundle's.
        loading: How the bundle is loaded.
    """
    from vitsplit.inference.asking import name_to_ask
    from vitsplit.inference.loading import read_bundles
    from vitsplit.inference.predictor import load_head

    bundles = read_bundles([str(run)])
    folder, card = bundles[name_to_ask({name: card for name, (_, card) in bundles.items()})]
    predictor = load_head(folder, **loading.arguments())
    conversation = Chat(predictor, Console(highlight=False), max_new_tokens=max_new_tokens)
    if card.config.task.conversation == "plain":
        conversation.tell("This bundle was trained on captions alone (plain): it reads no question.")
    if image is not None:
        conversation.look(image)
    conversation.run()
    return 0


class Chat:
    """A conversation in a terminal, or from lines that are piped in.

    Args:
        predictor: A bundle of visual question answering.
        console: Where it is written to. Beside answers everything goes to standard error.
        max_new_tokens: The most tokens of an answer; None: as the bundle says.

    Attributes:
        history: Questions and answers of the present conversation.
    """

    def __init__(self, predictor: Any, console: Console, *, max_new_tokens: int | None = None) -> None:
        self.predictor = predictor
        self.console = console
        self.max_new_tokens = max_new_tokens
        self.history: list[Turn] = []
        self._answerer: Answerer | None = None  # None until an image was named, or none was wanted
        self._notes = Console(stderr=True, highlight=False)
        self._is_terminal = sys.stdin.isatty()
        with contextlib.suppress(ImportError):  # not on every system; lets `input` edit lines and recall them
            importlib.import_module("readline")

    def run(self) -> None:
        """Reads lines until they end, or say so."""
        self.tell("/image PATH, /clear, /quit; Ctrl-C stops an answer")
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            if word == "/quit":
                return
            try:
                self._obey(line, word, rest.strip())
            except VitsplitError as error:
                self._notes.print(f"error: {error}", style="red", markup=False, soft_wrap=True)

    def look(self, path: str) -> None:
        """Looks at an image and begins a new conversation.

        Raises:
            DataError: It cannot be read; the conversation stays what it was.
            ConfigError: It is very large, and libvips, which reads such images, is not installed.
        """
        from vitsplit.inference.asking import read_whole

        file = Path(path.strip().strip("'\"")).expanduser()
        self._answerer = self.predictor.predict(read_whole(file)).answerer
        self.history = []

    def tell(self, text: str) -> None:
        """Says something to a person; silent where lines are piped in."""
        if self._is_terminal:
            self._notes.print(text, style="dim", markup=False, soft_wrap=True)

    def _obey(self, line: str, word: str, rest: str) -> None:
        if word == "/image" and rest:
            self.look(rest)
        elif word == "/clear" and not rest:
            self.history = []
        elif word in ("/image", "/clear") or (word.startswith("/") and self._answerer is not None):
            self._notes.print("Commands: /image PATH, /clear, /quit", markup=False)
        elif self._answerer is None:
            self._begin(line)
        elif line:
            self._answer(self._answerer, line)

    def _begin(self, line: str) -> None:
        """The first line names the image; an empty one means that there is none."""
        from vitsplit.tasks.vqa.predict import answerer_without_image

        if line:
            self.look(line)
        else:
            self._answerer = answerer_without_image(self.predictor)

    def _answer(self, answerer: Answerer, question: str) -> None:
        from vitsplit.tasks.vqa.prompts import Turn

        said = ""
        try:
            with contextlib.closing(
                answerer.stream(question, self.history, max_new_tokens=self.max_new_tokens)
            ) as pieces:
                for piece in pieces:
                    new = piece if said else piece.lstrip()
                    said += new
                    self.console.print(new, end="", markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            self.tell(" (stopped)")
        self.console.print()
        self.history.append(Turn(question, said.strip()))

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
                self.tell("\n/quit or Ctrl-D ends")
