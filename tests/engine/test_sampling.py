import shutil
from collections import Counter

import pytest
from tiny import TinyTask

from vitsplit.engine.sampling import MicroBatches, SampleStream, derive_seed, read_batches
from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.segmentation.config import SegmentationConfig
from vitsplit.tasks.segmentation.task import SegmentationTask


def keys(*, start=0, stop=5, batch_size=12, accumulate=1, rank=0, world=1, seed=0):
    stream = SampleStream(23, seed)
    return list(
        MicroBatches(
            stream, start=start, stop=stop, batch_size=batch_size, accumulate=accumulate, rank=rank, world=world
        )
    )


def test_every_epoch_visits_every_sample_once_in_a_new_order():
    stream = SampleStream(23, seed=3)
    epochs = [[stream[epoch * 23 + offset][0] for offset in range(23)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_seeds_of_samples_do_not_repeat():
    stream = SampleStream(5, seed=0)
    assert max(Counter(stream[position][1] for position in range(2000)).values()) == 1


def test_another_seed_gives_another_order():
    assert keys(seed=0) != keys(seed=1)
    assert derive_seed(1, 12) != derive_seed(11, 2)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (2, 3), (4, 1)])
def test_global_batches_do_not_depend_on_processes_and_micro_batches(world, accumulate):
    whole = keys()
    parts = [keys(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step in range(5):
        spread = [key for part in parts for micro in part[step * accumulate : (step + 1) * accumulate] for key in micro]
        assert spread == whole[step]


def test_a_stream_can_start_at_any_step():
    assert keys(start=3) == keys()[3:]


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "world"), [(10, 3, 1), (10, 1, 4), (12, 5, 2), (4, 0, 1), (0, 1, 1)]
)
def test_an_indivisible_batch_is_rejected(batch_size, accumulate, world):
    with pytest.raises(
        ConfigError, match=rf"{batch_size} images .* {world} process.* {accumulate} micro.*--batch-size"
    ):
        keys(batch_size=batch_size, accumulate=accumulate, world=world)


def test_an_empty_training_set_is_rejected():
    with pytest.raises(DataError, match="empty"):
        SampleStream(0, 0)


def test_workers_do_not_change_the_samples():
    task = TinyTask()

    def images(workers):
        batches = MicroBatches(SampleStream(23, 0), start=2, stop=8, batch_size=4, accumulate=1, rank=0, world=1)
        read = read_batches(task.collate, task.train_data(), batches, workers=workers, pin=False)
        return [(each.batch.names, each.batch.image_BCHW) for each in read]

    alone, with_workers = images(0), images(2)
    assert len(alone) == 6
    for (names, image_BCHW), (other_names, other_BCHW) in zip(alone, with_workers, strict=True):
        assert names == other_names and image_BCHW.equal(other_BCHW)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_line(scenes, tmp_path, workers):
    data = shutil.copytree(scenes, tmp_path / "data")
    damaged = sorted((data / "images" / "train").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:200])
    task = SegmentationTask.open(SegmentationConfig(crop_size=(48, 64)), data, ("train", "val"))
    batches = MicroBatches(SampleStream(6, 0), start=0, stop=3, batch_size=2, accumulate=1, rank=0, world=1)
    with pytest.raises(DataError) as caught:
        list(read_batches(task.collate, task.train_data(), batches, workers=workers, pin=False))
    assert str(damaged) in str(caught.value)
    assert "Traceback" not in str(caught.value) and len(str(caught.value).splitlines()) == 1
