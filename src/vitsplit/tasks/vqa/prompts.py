"""Tokenization of conversations, with a mask of the answers' tokens.

The image is ``<image>`` in text and a single ``IMAGE`` in token ids, for all its visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.tasks.vqa.chat_template import ChatTemplate, Messages
from vitsplit.tasks.vqa.config import PLACE, Conversation, VqaConfig

IMAGE = -1
"""Token id of the image."""

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def check_reads_questions(config: VqaConfig, run: str) -> None:
    """Checks that a bundle was trained on questions; ``run`` is its name for the error.

    Raises:
        ConfigError: It was trained on captions only.
    """
    if config.conversation == "plain":
        raise ConfigError(
            f"{run}: trained on captions only (--conversation plain), without questions. Train the second stage "
            f"(vitsplit train vqa --stage instruct --from {run}), and evaluate that."
        )


@dataclass(frozen=True)
class Turn:
    """A question and its answer, without ``PLACE``."""

    question: str
    answer: str


@dataclass(frozen=True)
class Tokens:
    """A tokenized conversation.

    Attributes:
        ids: Token ids, with ``IMAGE`` for the visual tokens.
        is_answer: For each token, whether it is part of an answer (including its end token), and thus of the loss.
    """

    ids: list[int]
    is_answer: list[bool]

    def cut(self, length: int) -> Tokens:
        """The first ``length`` tokens."""
        return Tokens(self.ids[:length], self.is_answer[:length])


class Prompter:
    """Formats and tokenizes conversations.

    ``template`` is the language model's chat template; ``v1`` LLaVA-1.5's format for Vicuna; ``plain`` the image
    followed by the answer, without the question, as in LLaVA-1.5's first stage.

    Args:
        tokenizer: The language model's tokenizer.
        conversation: The format.
        system_prompt: System prompt; None: the format's default.

    Raises:
        ConfigError: The tokenizer has no usable chat template.
    """

    def __init__(self, tokenizer: Any, conversation: Conversation, system_prompt: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.system_prompt = system_prompt
        if conversation == "template" and not tokenizer.chat_template:
            raise ConfigError(
                "The language model has no chat template. Use --conversation v1 (Vicuna's) or a chat model."
            )
        self.template = ChatTemplate(tokenizer) if conversation == "template" else None
        # Tokens that the tokenizer prepends to every text; chat templates include them.
        self.start: list[int] = [] if conversation == "template" else list(tokenizer("").input_ids)
        self.end: str = tokenizer.eos_token or ""

    def conversation_tokens(self, turns: Sequence[Turn], *, has_image: bool) -> Tokens:
        """Tokenizes a conversation, for training."""
        return self._tokens(self._pieces(turns, has_image=has_image), has_image=has_image)

    def question_ids(self, question: str, history: Sequence[Turn] = (), *, has_image: bool) -> list[int]:
        """Token ids of a conversation up to the answer to its last question, for generation."""
        pieces = self._pieces([*history, Turn(question, "")], has_image=has_image)[:-1]
        return self._tokens(pieces, has_image=has_image).ids

    def _pieces(self, turns: Sequence[Turn], *, has_image: bool) -> list[tuple[str, bool]]:
        """Splits the text into pieces, alternating between prompt and answer; the last one is an answer."""
        place = PLACE if has_image else ""
        match self.conversation:
            case "plain":
                return [(place, False), (turns[-1].answer.strip() + "\n", True)]
            case "v1":
                return self._v1(turns, place)
            case "template":
                return self._template(turns, place)

    def _v1(self, turns: Sequence[Turn], place: str) -> list[tuple[str, bool]]:
        pieces = []
        before = V1_SYSTEM if self.system_prompt is None else self.system_prompt
        for index, turn in enumerate(turns):
            image = f"{place}\n" if place and index == 0 else ""
            space = " " if index == 0 else ""
            pieces.append((f"{before}{space}USER: {image}{turn.question} ASSISTANT:", False))
            # The space is part of the answer's first token.
            pieces.append((f" {turn.answer}{self.end}", True))
            before = ""
        return pieces

    def _template(self, turns: Sequence[Turn], place: str) -> list[tuple[str, bool]]:
        assert self.template is not None
        messages = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        chats: list[tuple[Messages, bool]] = []
        for index, turn in enumerate(turns):
            image = f"{place}\n" if place and index == 0 else ""
            messages = [*messages, {"role": "user", "content": image + turn.question}]
            chats.append((messages, True))
            messages = [*messages, {"role": "assistant", "content": turn.answer}]
            chats.append((messages, False))
        written = self.template.render(chats)
        pieces, done = [], ""
        for asked, answered in zip(written[::2], written[1::2], strict=True):
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise ConfigError(
                    "The language model's chat template changes earlier turns of a conversation, so answers cannot be "
                    "located. Use --conversation v1, or another language model."
                )
            # An answer ends with its end token. A line break after it belongs to the next prompt.
            end = answered.rfind(self.end, len(asked)) + len(self.end) if self.end else -1
            if end > len(asked):
                answered = answered[:end]
            pieces += [(asked[len(done) :], False), (answered[len(asked) :], True)]
            done = answered
        return pieces

    def _tokens(self, pieces: Sequence[tuple[str, bool]], *, has_image: bool) -> Tokens:
        """Tokenizes the whole text at once, since pieces could be tokenized differently in context.

        Only the image is a certain token boundary. A token belongs to an answer if it starts in it.
        """
        text = "".join(piece for piece, _ in pieces)
        is_answer_char = [answer for piece, answer in pieces for _ in piece]
        ids, is_answer, begin = list(self.start), [False] * len(self.start), 0
        # Only the first placeholder is the image, and only if there is one; others are text.
        place = text.find(PLACE) if has_image else -1
        chunks = [(0, len(text))] if place < 0 else [(0, place), (place + len(PLACE), len(text))]
        for begin, end in chunks:
            if begin:
                ids.append(IMAGE)
                is_answer.append(False)
            chunk = self.tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += chunk.input_ids
            is_answer += [is_answer_char[begin + first] for first, _ in _spans(chunk.offset_mapping, end - begin)]
        return Tokens(ids, is_answer)


def _spans(offsets: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Character spans of tokens, with starts clipped to the text (for empty tokens)."""
    return [(min(first, length - 1), last) for first, last in offsets]
