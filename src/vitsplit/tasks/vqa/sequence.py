"""Token sequences with visual tokens, in the format of the language model.

Several conversations on one image can share a sequence: the common prefix (prompt and image) is followed by the
conversations. Each attends to the prefix and itself only, with positions continuing the prefix, so results equal those
of separate sequences.

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
"""Segment id of padding."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences with one token per image.

    Attributes:
        ids_BT: int64; ``IMAGE`` for an image, 0 for padding.
        is_answer_BT: bool, tokens of the loss.
        segment_BT: int64; 0 for the common prefix, from 1 for each conversation, ``PADDING`` for padding.
        position_BT: int64, position of the token in its conversation.
        image_B: int64, index of the image in the batch; -1 for a sequence without image.
        several: Whether any sequence has several conversations.
    """

    ids_BT: Tensor
    is_answer_BT: Tensor
    segment_BT: Tensor
    position_BT: Tensor
    image_B: Tensor
    several: bool

    def to(self, device: Any) -> TokenBatch:
        """Moves the batch to a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TokenBatch:
        """Copies the batch to pinned memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        tensors = (self.ids_BT, self.is_answer_BT, self.segment_BT, self.position_BT, self.image_B)
        ids_BT, is_answer_BT, segment_BT, position_BT, image_B = map(change, tensors)
        return TokenBatch(ids_BT, is_answer_BT, segment_BT, position_BT, image_B, self.several)


@dataclass(frozen=True)
class Sequences:
    """Sequences with all visual tokens.

    Attributes:
        ids_BS: int64; arbitrary for visual tokens and padding.
        visual_BS: int64, index of the visual token; -1 for text.
        is_answer_BS: bool.
        position_BS: int64.
        mask: Attention mask, bool: ``(B, S)`` padding mask (causality is added by the language model), or if any
            sequence has several conversations ``(B, 1, S, S)``, from query to key.
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
    """Collates conversations to a batch of sequences.

    Args:
        sequences: Conversations by sequence; those of one sequence share the image and the prompt before it.
        images: Index of the image by sequence, or -1.
        max_length: Length limit in tokens including visual ones, as in LLaVA; longer sequences are truncated.
        num_visual: Visual tokens per image.
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
    """For each token: id, whether part of an answer, segment, position."""
    shared = 0
    if len(conversations) > 1:
        shared = conversations[0].ids.index(IMAGE) + 1
    row = [(token, 0, 0, index) for index, token in enumerate(conversations[0].ids[:shared])]
    for number, tokens in enumerate(conversations, start=1):
        own = zip(tokens.ids, tokens.is_answer, strict=True)
        row += [(token, int(answer), number, index) for index, (token, answer) in enumerate(own) if index >= shared]
    return row[:max_length]


def expand(batch: TokenBatch, num_visual: int) -> Sequences:
    """Expands each image token to N visual tokens. Sequences without image are padded to the same length."""
    ids_BT = batch.ids_BT
    rows, length = ids_BT.shape
    here_BT = ids_BT == IMAGE
    # Without image, its position is after the end.
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
    # Padding attends to itself, so that no row of the softmax is empty.
    return (before_SS & (common_B1S | same_BSS))[:, None]
