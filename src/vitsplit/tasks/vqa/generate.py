"""Generation of answers from an image and questions.

The visual tokens of an image and their keys and values are computed once for all its questions.

Shapes: N visual tokens, W width of the language model, B questions, S tokens.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from vitsplit.errors import DataError
from vitsplit.files import shown
from vitsplit.precision import autocast
from vitsplit.tasks.vqa.decoder import VqaDecoder
from vitsplit.tasks.vqa.prompts import IMAGE, Prompter, Turn

BATCH = 16
"""Batch size."""
LONGEST = 16_384
"""Length limit in tokens of a prompt, also for language models with a larger window (attention is quadratic)."""
LETTERS = 64
"""Limit of characters per token of the window; longer prompts are rejected before tokenization."""

logger = logging.getLogger("vitsplit")


class Answerer:
    """Answers questions about one image, or without image.

    Args:
        decoder: Decoder with the language model.
        prompter: Builds prompts.
        tokens_NW: The image's visual tokens; None: questions without image.
        max_new_tokens: Default length limit of an answer in tokens.
        precision: Compute precision; None: that of the visual tokens, or float32 without image.
        cut: Truncate questions that exceed the language model's window, with a warning, instead of raising.

    Thread-safe: the cached keys and values are copied for every answer.

    Attributes:
        prefills: Number of times the image was processed (1 after the first question).
    """

    def __init__(
        self,
        decoder: VqaDecoder,
        prompter: Prompter,
        tokens_NW: Tensor | None,
        *,
        max_new_tokens: int,
        precision: torch.dtype | None = None,
        cut: bool = False,
    ) -> None:
        self.decoder = decoder
        self.prompter = prompter
        self.tokens_NW = tokens_NW
        self.max_new_tokens = max_new_tokens
        self.precision = precision or (torch.float32 if tokens_NW is None else tokens_NW.dtype)
        self.cut = cut
        self.prefills = 0
        self._lock = threading.Lock()
        self._begun: dict[tuple[int, ...], Any] = {}

    def answer(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        """Answers questions independently of each other, greedily.

        Raises:
            DataError: A question exceeds the language model's window.
        """
        prompts = [self._prompt(question) for question in questions]
        # Sorted by length, to reduce padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        answers = [""] * len(prompts)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            ids_BS = self._generate([prompts[index] for index in chosen], max_new_tokens)
            for index, ids in zip(chosen, ids_BS, strict=True):
                answers[index] = self._text(ids)
        return answers

    def continue_conversation(
        self, question: str, history: Sequence[Turn] = (), *, max_new_tokens: int | None = None
    ) -> str:
        """Answers the last question of a conversation.

        Raises:
            DataError: The conversation exceeds the language model's window.
        """
        (ids,) = self._generate([self._prompt(question, history)], max_new_tokens)
        return self._text(ids)

    def stream(
        self, question: str, history: Sequence[Turn] = (), *, max_new_tokens: int | None = None
    ) -> Generator[str, None, None]:
        """As ``continue_conversation``, streaming. Closing the iterator stops the generation."""
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.prompter.tokenizer, skip_prompt=False, skip_special_tokens=True)
        failures: list[BaseException] = []
        stopped = threading.Event()

        def work() -> None:
            try:
                prompts = [self._prompt(question, history)]
                self._generate(prompts, max_new_tokens, streamer=streamer, is_stopped=stopped.is_set)
            except BaseException as error:  # re-raised in the consumer
                failures.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            stopped.set()
            thread.join()
        if failures:
            raise failures[0]

    def _prompt(self, question: str, history: Sequence[Turn] = ()) -> list[int]:
        """The prompt's token ids, with one for the image, within the language model's window."""
        num_visual = 0 if self.tokens_NW is None else len(self.tokens_NW)
        window = self.window
        most = window - max(num_visual - 1, 0)
        asked = question
        while True:
            # Checked before tokenization, which is slow for very long texts.
            letters = len(asked) + sum(len(turn.question) + len(turn.answer) for turn in history)
            ids = [] if letters > LETTERS * window else self._ids(asked, history)
            if ids and len(ids) <= most:
                break
            if not self.cut or not asked:
                size = f"{len(ids)} tokens including its prompt" if ids else f"{letters} characters"
                raise DataError(
                    f"The question {shown(question)} has {size}, but the language model's window is {window} tokens, "
                    f"including {num_visual} of the image. Shorten "
                    f"it{', or start a new conversation' if history else ''}."
                )
            keep = len(asked) * most // len(ids) if ids else LETTERS * window
            asked = asked[: min(keep, len(asked) - 1)]
        if asked != question:
            logger.warning("the question %s is truncated to %d characters", shown(question), len(asked))
        return ids

    def _ids(self, question: str, history: Sequence[Turn]) -> list[int]:
        return self.prompter.question_ids(question, history, has_image=self.tokens_NW is not None)

    @property
    def window(self) -> int:
        """Length limit of a prompt in tokens, including the image."""
        settings = self.decoder.causal_model.config.get_text_config()
        return min(getattr(settings, "max_position_embeddings", None) or LONGEST, LONGEST)

    def _text(self, ids_S: Tensor) -> str:
        text = str(self.prompter.tokenizer.decode(ids_S, skip_special_tokens=True)).strip()
        # A caption ends with a line break, there is no end token.
        return text.partition("\n")[0].rstrip() if self.prompter.conversation == "plain" else text

    @torch.no_grad()  # in inference mode autocast does not cache weights
    def _generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int | None,
        streamer: Any = None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Generates greedily, ``(B, new tokens)``, padded after the end."""
        device = next(self.decoder.parameters()).device
        model, tokenizer = self.decoder.causal_model, self.prompter.tokenizer
        common = 0 if self.tokens_NW is None else prompts[0].index(IMAGE) + 1
        with autocast(device.type, self.precision):
            begun = self._begin(tuple(prompts[0][:common])) if common else None
            rest = [self._embed(prompt[common:]) for prompt in prompts]
            longest = max(len(each) for each in rest)
            shared_SW = begun[0] if begun else rest[0][:0]
            embedded_BSW = torch.stack(
                [torch.cat([shared_SW, each.new_zeros(longest - len(each), each.shape[1]), each]) for each in rest]
            )
            mask_BS = torch.ones(embedded_BSW.shape[:2], dtype=torch.int64, device=device)
            for row, each in enumerate(rest):
                mask_BS[row, len(shared_SW) : len(shared_SW) + longest - len(each)] = 0
            options: dict[str, Any] = {}
            if begun:
                options["past_key_values"] = copy.deepcopy(begun[1])
                options["past_key_values"].batch_repeat_interleave(len(prompts))
            stops = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)} - {None}
            ids_BS: Tensor = model.generate(
                inputs_embeds=embedded_BSW,
                attention_mask=mask_BS,
                max_new_tokens=max_new_tokens or self.max_new_tokens,
                do_sample=False,
                use_cache=True,
                eos_token_id=sorted(stops) or None,
                pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=[lambda ids_BS, _: torch.full((len(ids_BS),), is_stopped(), device=ids_BS.device)],
                **options,
            )
        return ids_BS

    def _begin(self, ids: tuple[int, ...]) -> tuple[Tensor, Any]:
        """Embeddings ``(S, W)`` and keys and values of the common prefix of all prompts."""
        with self._lock:  # computed by one thread, others wait
            if ids not in self._begun:
                embedded_SW = self._embed(list(ids))
                read = self.decoder.base_model(inputs_embeds=embedded_SW[None], use_cache=True)
                self._begun[ids] = (embedded_SW, read.past_key_values)
                self.prefills += 1
            return self._begun[ids]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """Embeds tokens, one of which may be the image: ``(S, W)``."""
        device = next(self.decoder.parameters()).device
        num_visual = 0 if self.tokens_NW is None else len(self.tokens_NW)
        words: list[int] = []
        visual: list[int] = []
        for token in ids:
            words += [0] * num_visual if token == IMAGE else [token]
            visual += range(num_visual) if token == IMAGE else [-1]
        words_1S = torch.tensor([words], dtype=torch.int64, device=device)
        visual_1S = torch.tensor([visual], dtype=torch.int64, device=device)
        row_1 = torch.zeros(1, dtype=torch.int64, device=device)
        tokens_INW = self._no_image(device) if self.tokens_NW is None else self.tokens_NW[None]
        return self.decoder.embed(words_1S, visual_1S, row_1, tokens_INW)[0]

    def _no_image(self, device: torch.device) -> Tensor:
        width = self.decoder.language_model.get_input_embeddings().embedding_dim
        return torch.zeros(1, 1, width, device=device)


def _as_list(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
