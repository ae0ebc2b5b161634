"""Conversations to tokens: what the language model reads, and which of its tokens are answers.

The image stands in a text as ``<image>`` and in tokens as ``IMAGE``, one for all of its visual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitsplit.errors import ConfigError
from vitsplit.tasks.vqa.chat_template import ChatTemplate, Messages
from vitsplit.tasks.vqa.config import Conversation, VqaConfig

IMAGE = -1
"""Stands among token ids where the visual tokens go."""
PLACE = "<image>"
"""The same in a text."""

V1_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def check_reads_questions(config: VqaConfig, run: str) -> None:
    """Refuses to measure answers of a bundle that reads no question; ``run`` is what it is called.

    Raises:
        ConfigError: It was trained on captions alone.
    """
    if config.conversation == "plain":
        raise ConfigError(
            f"{run}: trained on captions alone (--conversation plain), so it reads no question. Train the second stage "
            f"from it (vitsplit train vqa --stage instruct --from {run}), and measure that."
        )


@dataclass(frozen=True)
class Turn:
    """A question and its answer. In the first of a conversation on an image ``PLACE`` is not part of the question."""

    question: str
    answer: str


@dataclass(frozen=True)
class Tokens:
    """A conversation as the language model reads it.

    Attributes:
        ids: Token ids, with ``IMAGE`` where the visual tokens go.
        is_answer: Of every one, whether it is to be learnt: it belongs to an answer, or ends one.
    """

    ids: list[int]
    is_answer: list[bool]

    def cut(self, length: int) -> Tokens:
        """The first so many."""
        return Tokens(self.ids[:length], self.is_answer[:length])


class Prompter:
    """Writes conversations in one of three forms, and breaks them into tokens.

    ``template`` is the language model's own chat template; ``v1`` LLaVA-1.5's for Vicuna; ``plain`` is the image, and
    after it the answer alone, as in LLaVA-1.5's first stage: questions are dropped.

    Args:
        tokenizer: The language model's.
        conversation: The form.
        system_prompt: What the conversation begins with; None: what the form begins with by itself.

    Raises:
        ConfigError: The tokenizer has no chat template, or one that cannot be used.
    """

    def __init__(self, tokenizer: Any, conversation: Conversation, system_prompt: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.system_prompt = system_prompt
        if conversation == "template" and not tokenizer.chat_template:
            raise ConfigError(
                "The language model has no chat template: give --conversation v1 (Vicuna's) or a model for chats."
            )
        self.template = ChatTemplate(tokenizer) if conversation == "template" else None
        # What the tokenizer itself begins every text with; chat templates write it out.
        self.start: list[int] = [] if conversation == "template" else list(tokenizer("").input_ids)
        self.end: str = tokenizer.eos_token or ""

    def conversation_tokens(self, turns: Sequence[Turn], *, has_image: bool) -> Tokens:
        """A whole conversation, for training."""
        return self._tokens(self._pieces(turns, has_image=has_image), has_image=has_image)

    def question_ids(self, question: str, history: Sequence[Turn] = (), *, has_image: bool) -> list[int]:
        """A conversation up to where the answer to its last question begins, for prediction."""
        pieces = self._pieces([*history, Turn(question, "")], has_image=has_image)[:-1]
        return self._tokens(pieces, has_image=has_image).ids

    def _pieces(self, turns: Sequence[Turn], *, has_image: bool) -> list[tuple[str, bool]]:
        """The text in pieces that are answers and pieces that are not, by turns; the last one is an answer."""
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
            # The space belongs to the answer's first token.
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
                    "The language model's chat template writes a conversation anew when it goes on, so that answers "
                    "cannot be told from the rest. Give --conversation v1, or another language model."
                )
            # An answer ends with the token that ends it. A line break that a template writes after it belongs to what
            # follows, so that where nothing follows it is not there.
            end = answered.rfind(self.end, len(asked)) + len(self.end) if self.end else -1
            if end > len(asked):
                answered = answered[:end]
            pieces += [(asked[len(done) :], False), (answered[len(asked) :], True)]
            done = answered
        return pieces

    def _tokens(self, pieces: Sequence[tuple[str, bool]], *, has_image: bool) -> Tokens:
        """Breaks the whole text into tokens at once: a piece by itself could break otherwise than in its place.

        The image is the one place that separates tokens for certain. A token counts as an answer's if it begins in it.
        """
        text = "".join(piece for piece, _ in pieces)
        is_answer_char = [answer for piece, answer in pieces for _ in piece]
        ids, is_answer, begin = list(self.start), [False] * len(self.start), 0
        # Without an image, and anywhere but in the first place, the word is a word.
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
    """Where tokens begin, inside the text: a token of no characters lies where the next one does."""
    return [(min(first, length - 1), last) for first, last in offsets]
