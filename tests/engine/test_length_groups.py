"""Batches of samples of similar length."""

import torch

from vitsplit.engine.sampling import SampleStream, group_by_length


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_batches_have_one_kind_and_similar_lengths():
    lengths = [*range(1, 41), *(-length for length in range(1, 25))]
    order = torch.randperm(64, generator=generator()).tolist()
    grouped = group_by_length(order, lengths, 8, generator())
    assert sorted(grouped) == list(range(64))
    for begin in range(0, 64, 8):
        batch = [lengths[index] for index in grouped[begin : begin + 8]]
        assert all(length > 0 for length in batch) or all(length < 0 for length in batch)
        # All batches fit into one pool, so a batch of eight different whole numbers in a row spans seven.
        assert max(batch) - min(batch) == 7
    assert grouped != sorted(grouped)


def test_incomplete_batches_come_last():
    lengths = [5, 6, 7, -5, -6, 8, 9]
    grouped = group_by_length(range(7), lengths, 4, generator())
    assert sorted(grouped[:4]) == [0, 1, 2, 5]
    assert sorted(grouped[4:]) == [3, 4, 6]


def test_a_stream_visits_every_sample_once_per_epoch_in_a_new_order():
    lengths = list(range(1, 33))
    stream = SampleStream(32, seed=1, lengths=lengths, batch_size=4)
    epochs = [[stream[epoch * 32 + offset][0] for offset in range(32)] for epoch in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(32))] * 2
    assert epochs[0] != epochs[1]
    again = SampleStream(32, seed=1, lengths=lengths, batch_size=4)
    assert [again[32 + offset][0] for offset in range(32)] == epochs[1]


def test_batches_have_one_kind_if_they_do_not_divide_an_epoch():
    """103 samples in batches of 8: an epoch begins in the middle of a batch, and that batch alone may be mixed."""
    lengths = [*range(1, 61), *(-length for length in range(1, 44))]
    stream = SampleStream(103, seed=3, lengths=lengths, batch_size=8)
    visited = [stream[position][0] for position in range(4 * 103)]
    for epoch in range(4):
        assert sorted(visited[epoch * 103 : (epoch + 1) * 103]) == list(range(103))
    for epoch in range(4):
        first, end = -(-epoch * 103 // 8), (epoch + 1) * 103 // 8  # batches that lie in the epoch as a whole
        kinds = [{lengths[index] > 0 for index in visited[8 * batch : 8 * batch + 8]} for batch in range(first, end)]
        mixed = sum(len(kind) > 1 for kind in kinds)
        assert mixed <= 2, "what is left over of two kinds fills at most two batches"
        assert all(len(kind) == 1 for kind in kinds[:-2])
