"""Sequences of tokens in which an image's visual tokens stand, as the language model takes them.

Several conversations on one image can share a sequence. They stand behind each other after what they have in common:
the prompt up to the image, and the image itself. Each sees the common part and itself, and counts its positions from
the common part on: the language model computes for each what it would compute for it alone.

Shapes: B sequences, T tokens with one for the image, S tokens with all visual ones, N visual tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitsplit.tasks.vqa.prompts import IMAGE, Tokens

PADDING = -1
"""Segment of tokens that are not there."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences in which an image is still one token.

    Attributes:
        ids_BT: int64; ``IMAGE`` where an image goes, 0 where nothing is.
        is_answer_BT: bool, tokens to be learnt.
        segment_BT: int64; 0 for what all conversations of a sequence share, from 1 for each, ``PADDING`` for nothing.
        position_BT: int64, of the token in its conversation.
        image_B: int64, row among the images of the batch; -1 for a sequence without one.
        several: Whether some sequence has several conversations.
    """

    ids_BT: Tensor
    is_answer_BT: Tensor
    segment_BT: Tensor
    position_BT: Tensor
    image_B: Tensor
    several: bool

    def to(self, device: Any) -> TokenBatch:
        """On a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TokenBatch:
        """In page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        tensors = (self.ids_BT, self.is_answer_BT, self.segment_BT, self.position_BT, self.image_B)
        ids_BT, is_answer_BT, segment_BT, position_BT, image_B = map(change, tensors)
        return TokenBatch(ids_BT, is_answer_BT, segment_BT, position_BT, image_B, self.several)


@dataclass(frozen=True)
class Sequences:
    """Sequences with all their visual tokens.

    Attributes:
        ids_BS: int64; arbitrary where a visual token or nothing is.
        visual_BS: int64, which visual token of its image stands here; -1: a word.
        is_answer_BS: bool.
        position_BS: int64.
        mask: What may be attended to: bool ``(B, S)`` (tokens that are there; the language model itself keeps the
            future out), or where a sequence has several conversations ``(B, 1, S, S)``, from row to column.
        image_B: See ``TokenBatch``.
    """

    ids_BS: Tensor
    visual_BS: Tensor
    is_answer_BS: Tensor
    position_BS: Tensor
    mask: Tensor
    image_B: Tensor


def stack(
    sequences: Sequence[Sequence[Tokens]], images: Sequence[int], *, max_length: int, num_visual: int = 1
) -> TokenBatch:
    """Conversations to a batch of sequences.

    Args:
        sequences: For every sequence its conversations. Those of one sequence are on the same image, and the same up to
            it.
        images: For every sequence the row of its image, or -1.
        max_length: Tokens of a sequence with all its visual ones, as LLaVA counts them; the rest is cut off.
        num_visual: Visual tokens of an image.
    """
    rows = [
        _row(conversations, max_length if image < 0 else max_length - num_visual + 1)
        for conversations, image in zip(sequences, images, strict=True)
    ]
    length = max(len(row) for row in rows)
    padded_BT4 = torch.tensor([row + [(0, 0, PADDING, 0)] * (length - len(row)) for row in rows])
    ids_BT, is_answer_BT, segment_BT, position_BT = padded_BT4.unbind(-1)
    several = any(len(conversations) > 1 for conversations in sequences)
    return TokenBatch(ids_BT, is_answer_BT.bool(), segment_BT, position_BT, torch.tensor(list(images)), several)


def _row(conversations: Sequence[Tokens], max_length: int) -> list[tuple[int, int, int, int]]:
    """Of every token: id, whether it is an answer's, segment, position."""
    shared = 0
    if len(conversations) > 1:
        shared = conversations[0].ids.index(IMAGE) + 1
    row = [(token, 0, 0, index) for index, token in enumerate(conversations[0].ids[:shared])]
    for number, tokens in enumerate(conversations, start=1):
        own = zip(tokens.ids, tokens.is_answer, strict=True)
        row += [(token, int(answer), number, index) for index, (token, answer) in enumerate(own) if index >= shared]
    return row[:max_length]


def expand(batch: TokenBatch, num_visual: int) -> Sequences:
    """Makes room for N visual tokens where an image was one token. Sequences without an image are padded as much."""
    ids_BT = batch.ids_BT
    rows, length = ids_BT.shape
    here_BT = ids_BT == IMAGE
    # Where there is no image, its place is behind the end.
    place_B1 = torch.where(here_BT.any(1), here_BT.int().argmax(1), length)[:, None]
    step_BS = torch.arange(length + num_visual - 1, device=ids_BT.device).expand(rows, -1)
    behind_BS = step_BS >= place_B1 + num_visual
    visual_BS = torch.where((step_BS >= place_B1) & ~behind_BS, step_BS - place_B1, -1)
    source_BS = torch.where(behind_BS, step_BS - (num_visual - 1), torch.minimum(step_BS, place_B1))
    is_there_BS = source_BS < length
    source_BS = source_BS.clamp(max=length - 1)

    def spread(values_BT: Tensor) -> Tensor:
        return values_BT.gather(1, source_BS)

    visual_BS = visual_BS.where(is_there_BS, -1)
    offset_BS = torch.where(behind_BS, num_visual - 1, visual_BS.clamp(min=0))
    segment_BS = spread(batch.segment_BT).where(is_there_BS, PADDING)
    return Sequences(
        ids_BS=spread(ids_BT).clamp(min=0),
        visual_BS=visual_BS,
        is_answer_BS=spread(batch.is_answer_BT) & is_there_BS,
        position_BS=spread(batch.position_BT) + offset_BS,
        mask=_mask(segment_BS, several=batch.several),
        image_B=batch.image_B,
    )


def _mask(segment_BS: Tensor, *, several: bool) -> Tensor:
    is_there_BS = segment_BS != PADDING
    if not several:
        return is_there_BS
    before_SS = torch.ones(segment_BS.shape[1], segment_BS.shape[1], dtype=torch.bool, device=segment_BS.device).tril()
    common_B1S = (segment_BS == 0)[:, None, :]
    same_BSS = segment_BS[:, :, None] == segment_BS[:, None, :]
    # A token that is not there sees itself, so that no row of the softmax is empty.
    return (before_SS & (common_B1S | same_BSS))[:, None]
