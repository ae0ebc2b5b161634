"""``vitsplit chat``: the oracle is the same conversation, question by question, in Python."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_segmentation_bundle
from PIL import Image
from rich.console import Console
from vqa_bundles import write_language_model, write_vqa_bundle

import vitsplit
from vitsplit.cli.chat import Chat
from vitsplit.cli.main import main
from vitsplit.tasks.vqa.predict import ask_without_image
from vitsplit.tasks.vqa.prompts import Turn


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("chat")
    write_vqa_bundle(root / "asked", write_language_model(root / "tiny"), seed=3)
    write_segmentation_bundle(root / "rooms")
    pixels = np.random.default_rng(0)
    for name in ("a", "my desk"):
        Image.fromarray(pixels.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> Any:
    return vitsplit.load(root / "asked", language_weights=root / "tiny")["vqa"]


def conversation(model: Any, image: Path, questions: list[str], tokens: int | None = None) -> list[str]:
    """Answers to the questions of a conversation."""
    prediction, history = model.predict(image), []
    for question in questions:
        history.append(Turn(question, prediction.ask(question, history=list(history), max_new_tokens=tokens)))
    return [turn.answer for turn in history]


def run_chat(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[str],
         *words: str) -> tuple[list[str], str]:  # fmt: skip
    """Pipes lines into a chat; returns the lines of standard output, and standard error."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    assert main(["chat", str(root / "asked"), *words, "--language-weights", str(root / "tiny")]) == 0
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return output.out.splitlines(), output.err


def test_a_piped_conversation(
    root: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, desk = root / "a.png", root / "my desk.png"
    first = conversation(model, a, ["What?", "Where?"])
    assert first[1] != conversation(model, a, ["Where?"])[0], "the conversation makes no difference"
    lines = ["What?", "", "Where?", f"/image {root}/nowhere.png", "Why?", "/clear", "Where?", f"/image {desk}",
             "What?", "/wrong", "/quit", "What?"]  # fmt: skip
    out, err = run_chat(root, monkeypatch, capsys, lines, str(a))
    assert [line.rstrip() for line in out] == [
        *conversation(model, a, ["What?", "Where?", "Why?"]),
        *conversation(model, a, ["Where?"]),
        *conversation(model, desk, ["What?"]),
    ]
    assert "nowhere.png" in err and "/clear" in err


def test_without_an_image_the_first_line_names_one(
    root: Path, model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["nothing.png", f"{root}/my desk.png", "What?"]
    out, err = run_chat(root, monkeypatch, capsys, lines, "--max-new-tokens", "5")
    assert out == conversation(model, root / "my desk.png", ["What?"], 5) and "nothing.png" in err
    out, err = run_chat(root, monkeypatch, capsys, ["", "What?"])
    assert out == ask_without_image(model, ["What?"]) and "error" not in err


class Terminal:
    """A terminal in which lines are typed, Ctrl-C is pressed, and finally Ctrl-D."""

    def __init__(self, keys: list[str | type[BaseException]]) -> None:
        self.keys: Iterator[Any] = iter(keys)
        self.prompts: list[str] = []

    def isatty(self) -> bool:
        return True

    def input(self, prompt: str = "") -> str:
        self.prompts.append(prompt)
        key = next(self.keys, EOFError)
        if isinstance(key, str):
            return key
        raise key


def test_a_conversation_in_a_terminal(root: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal([KeyboardInterrupt, str(root / "a.png"), "What?", KeyboardInterrupt])
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(builtins, "input", terminal.input)
    written = io.StringIO()
    Chat(model, Console(file=written)).run()
    assert terminal.prompts == ["image (empty: none)> "] * 2 + ["> "] * 3
    assert written.getvalue().split() == conversation(model, root / "a.png", ["What?"])[0].split()


def test_an_interrupted_answer_stays_in_the_conversation(
    root: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(io.StringIO):
        """Raises KeyboardInterrupt after three characters were written."""

        def write(self, text: str) -> int:
            count = super().write(text)
            if self.armed and len(self.getvalue().strip()) >= 3:
                self.armed = False
                raise KeyboardInterrupt
            return count

        armed = True

    # Words are printed when they are complete, and this language model makes them at random.
    answers = {
        question: conversation(model, root / "a.png", [question], 400)[0]
        for question in ("Is it a lamp?", "What is it?", "How many?", "Where is the lamp?")
    }
    question, whole = max(answers.items(), key=lambda item: len(item[1].split()))
    written = Interrupting()
    chat = Chat(model, Console(file=written), max_new_tokens=400)
    chat.open_image(str(root / "a.png"))
    chat._handle_line(question, *question.split(maxsplit=1))
    (turn,) = chat.history
    assert 3 <= len(turn.answer) < len(whole) and whole.startswith(turn.answer)
    before = len(written.getvalue())
    chat._handle_line("Where?", "Where?", "")
    assert len(chat.history) == 2 and len(written.getvalue()) > before


def test_bundles_of_other_tasks_are_rejected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(root / "rooms"), str(root / "a.png")]) == 2
    assert "segmentation: segmentation" in capsys.readouterr().err
    assert main(["chat", str(root / "asked"), str(root / "nowhere.png"), "--language-weights", str(root / "tiny")]) == 2
    assert "nowhere.png" in capsys.readouterr().err
