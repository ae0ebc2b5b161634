"""Positions of the tokens of a sequence, against lists built one token at a time."""

import random

import pytest
import torch

from vitsplit.tasks.vqa.prompts import IMAGE, Tokens
from vitsplit.tasks.vqa.sequence import expand, stack

N = 5


def conversation(rng, prefix, length, *, has_image=True):
    own = [rng.randrange(10, 90) for _ in range(length)]
    ids = [*prefix, IMAGE, *own] if has_image else own
    return Tokens(ids, [False] * (len(ids) - length) + [index >= length // 2 for index in range(length)])


def by_hand(conversations, has_image):
    """Of every token: (id, visual token, is answer, position, conversation); 0 is what all conversations share."""
    entries = []
    for number, tokens in enumerate(conversations, start=1):
        position = 0
        shared = len(conversations) > 1
        for token, answer in zip(tokens.ids, tokens.is_answer, strict=True):
            group = 0 if shared and position_is_common(tokens, len(entries_of(tokens, position))) else number
            for visual in range(N) if token == IMAGE else [-1]:
                entry = (None if visual >= 0 else token, visual, answer, position, group)
                if group or number == 1:
                    entries.append(entry)
                position += 1
    assert has_image or all(entry[1] < 0 for entry in entries)
    return entries


def entries_of(tokens, position):
    """The tokens before a position."""
    counted, before = 0, []
    for token in tokens.ids:
        if counted >= position:
            break
        before.append(token)
        counted += N if token == IMAGE else 1
    return before


def position_is_common(tokens, index):
    return index <= tokens.ids.index(IMAGE)


def batches():
    rng = random.Random(0)
    prefix = [3, 4, 5]
    three = [conversation(rng, prefix, length) for length in (4, 7, 2)]
    one = [conversation(rng, [6], 9)]
    text = [conversation(rng, [], 12, has_image=False)]
    first = [conversation(rng, [], 3)]
    yield [one], [0]
    yield [text], [-1]
    yield [three], [0]
    yield [one, text, first], [0, -1, 1]
    yield [text, three, one], [-1, 0, 1]
    yield [first, text], [0, -1]


@pytest.mark.parametrize(("rows", "images"), list(batches()))
def test_token_positions_equal_a_reference(rows, images):
    sequences = expand(stack(rows, images, max_length=1000), N)
    assert torch.equal(sequences.image_B, torch.tensor(images))
    length = sequences.ids_BS.shape[1]
    several = any(len(row) > 1 for row in rows)
    assert sequences.mask.shape == ((len(rows), 1, length, length) if several else (len(rows), length))
    for b, (row, image) in enumerate(zip(rows, images, strict=True)):
        entries = by_hand(row, image >= 0)
        assert length >= len(entries)
        for s in range(length):
            if s >= len(entries):
                assert not sequences.is_answer_BS[b, s] and sequences.visual_BS[b, s] == -1
                assert several or not sequences.mask[b, s]
                continue
            token, visual, answer, position, group = entries[s]
            assert token is None or sequences.ids_BS[b, s] == token
            assert (sequences.visual_BS[b, s], sequences.is_answer_BS[b, s]) == (visual, answer)
            assert sequences.position_BS[b, s] == position
            if not several:
                assert sequences.mask[b, s]
                continue
            for other in range(length):
                sees = other <= s < len(entries) and other < len(entries) and entries[other][4] in (0, group)
                assert bool(sequences.mask[b, 0, s, other]) == sees, (b, s, other)
    if several:
        assert sequences.mask.any(-1).all(), "no row of the softmax is empty"


def test_one_visual_token_is_a_token():
    (rows, images) = next(batches())
    sequences = expand(stack(rows, images, max_length=1000), 1)
    assert sequences.ids_BS.shape[1] == len(rows[0][0].ids)
    assert sequences.visual_BS[0].tolist() == [0 if token == IMAGE else -1 for token in rows[0][0].ids]


def test_long_sequences_are_truncated_at_the_end():
    rng = random.Random(1)
    row = [conversation(rng, [3], length) for length in (6, 6)]
    whole, cut = (stack([row], [0], max_length=length) for length in (1000, 10))
    assert whole.ids_BT.shape == (1, 14) and cut.ids_BT.shape == (1, 10)
    assert torch.equal(cut.ids_BT, whole.ids_BT[:, :10]) and torch.equal(cut.segment_BT, whole.segment_BT[:, :10])


@pytest.mark.parametrize("num_visual", [1, 4, 9])
def test_visual_tokens_count_toward_the_length(num_visual):
    """As in LLaVA: the complete sequence is truncated to ``model_max_length``."""
    rng = random.Random(2)
    rows = [[conversation(rng, [3], 8)], [conversation(rng, [3], 14)], [conversation(rng, [], 14, has_image=False)]]
    images = [0, 1, -1]
    whole = expand(stack(rows, images, max_length=1000), num_visual)
    cut = stack(rows, images, max_length=12, num_visual=num_visual)
    made = expand(cut, num_visual)
    there = [int((made.mask[row] if made.mask.dim() == 2 else made.mask[row, 0].any(0)).sum()) for row in range(3)]
    lengths = [len(row[0].ids) + (num_visual - 1) * (image >= 0) for row, image in zip(rows, images, strict=True)]
    assert there == [min(12, length) for length in lengths] and max(lengths) > 12
    for row, length in enumerate(there):
        for name in ("ids_BS", "visual_BS", "is_answer_BS", "position_BS"):
            assert torch.equal(getattr(made, name)[row, :length], getattr(whole, name)[row, :length]), name
    # The divisor of the loss counts the remaining tokens.
    assert int(cut.is_answer_BT[:, 1:].sum()) == int(made.is_answer_BS[:, 1:].sum())
