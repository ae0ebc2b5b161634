"""Images on which layers are compared."""

import pytest

from vitsplit.analysis.images import batches_to_compare


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (11, 4, [4, 7]), (13, 8, [8, 5]), (11, 8, [11]), (5, 4, [5])],
)
def test_every_image_is_used_and_no_batch_is_too_small(count, batch_size, sizes, tmp_path):
    names = [f"{index}.png" for index in range(count)]
    for name in names:
        (tmp_path / name).touch()
    batches = batches_to_compare(tmp_path, 0, batch_size)
    assert [len(batch) for batch in batches] == sizes
    assert sorted(file.name for batch in batches for file in batch) == sorted(names)
