"""Which sample is read when: one endless stream that depends on the seed alone.

Position p of the stream names a sample and the seed of its augmentation. Step s trains on the positions
``[s * B, (s + 1) * B)``, whoever reads them: neither processes, micro-batches nor workers change the data, and a run
that goes on at step s needs no more than s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vitsplit.data.read_ahead import read_ahead, resolve_workers
from vitsplit.engine.feature_store import Kept
from vitsplit.engine.run_data import Batch, RunData
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError, DataError
from vitsplit.train_config import LoopConfig

LENGTH_POOL = 50
"""Batches that are sorted by length together: more would make the order of an epoch less random."""


def derive_seed(*parts: int | str) -> int:
    """A seed below 2**63 from a few words and numbers; different parts give unrelated seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SampleStream:
    """The endless stream of ``(index, sample seed)``: every epoch visits every sample once, in an order of its own.

    Args:
        num_samples: Samples of the training set.
        seed: Seed of the run.
        lengths: Of every sample about how long it is, see ``LengthGroups``; None: an order without regard to that.
        batch_size: Samples that should be alike, with ``lengths``.
        views: In how many ways a sample is augmented: its epochs take them in turn, and they are the same for every
            seed. 0: every time anew.

    Raises:
        DataError: There are no samples.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
        views: int = 0,
    ) -> None:
        if num_samples < 1:
            raise DataError("The training set is empty: give --data a folder with training images.")
        self.num_samples = num_samples
        self.seed = seed
        self.lengths = lengths
        self.batch_size = batch_size
        self.views = views
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> tuple[int, int]:
        """The sample at a position, and the seed of its augmentation."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._order = torch.randperm(self.num_samples, generator=generator).tolist()
            if self.lengths is not None:
                # What the last epoch's last batch still has room for belongs to no batch of this one.
                begun = -epoch * self.num_samples % self.batch_size
                rest = group_by_length(self._order[begun:], self.lengths, self.batch_size, generator)
                self._order = [*self._order[:begun], *rest]
            self._epoch = epoch
        index = self._order[offset]
        if self.views:
            return index, derive_seed("view", index, epoch % self.views)
        return index, derive_seed(self.seed, "sample", position)


def group_by_length(
    order: Sequence[int], lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[int]:
    """Puts an order so that batches are of samples of one kind and about one length, as LLaVA-1.5's second stage does.

    Args:
        order: Samples in random order.
        lengths: Of every sample about how long it is; those of the second kind have negative lengths.
        batch_size: Samples of a batch. What is left over of each kind comes last, in mixed batches.
        generator: Draws the order of the batches.
    """
    batches: list[list[int]] = []
    left_over: list[int] = []
    for kind in (
        [index for index in order if lengths[index] >= 0],
        [index for index in order if lengths[index] < 0],
    ):
        whole = len(kind) // batch_size * batch_size
        left_over += kind[whole:]
        pool = LENGTH_POOL * batch_size
        for begin in range(0, whole, pool):
            alike = sorted(kind[begin : min(begin + pool, whole)], key=lambda index: abs(lengths[index]))
            batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [index for batch in shuffled for index in batches[batch]] + left_over


class MicroBatches:
    """The keys of one process's micro-batches, step by step: a ``sampler`` of lists.

    Args:
        stream: The stream of samples.
        start: First step.
        stop: Step after the last one, so that no worker reads what nobody trains on.
        batch_size: Images per step over all processes.
        accumulate: Micro-batches per step.
        rank: This process.
        world: Number of processes.

    Raises:
        ConfigError: ``batch_size`` cannot be divided.
    """

    def __init__(
        self, stream: SampleStream, *, start: int, stop: int, batch_size: int, accumulate: int, rank: int, world: int
    ) -> None:
        if accumulate < 1 or batch_size < 1 or batch_size % (world * accumulate):
            raise ConfigError(
                f"A batch of {batch_size} images cannot be shared by {world} process(es) in {accumulate} "
                f"micro-batch(es) each: give --batch-size a multiple of {world * max(1, accumulate)}."
            )
        self.stream = stream
        self.steps = range(start, stop)
        self.accumulate = accumulate
        self.batch_size = batch_size
        self.size = batch_size // (world * accumulate)
        self.first = rank * accumulate * self.size

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for micro in range(self.accumulate):
                begin = step * self.batch_size + self.first + micro * self.size
                yield [self.stream[position] for position in range(begin, begin + self.size)]


@dataclass(frozen=True)
class ReadBatch:
    """A batch, and where features are kept what is kept of its images."""

    batch: Batch
    kept: Kept | None = None

    def to(self, device: Any) -> ReadBatch:
        """The batch on a device. Features follow when they are used."""
        return ReadBatch(self.batch.to(device), self.kept)

    def pin_memory(self) -> ReadBatch:
        """The batch, and what is kept of it, in page-locked memory."""
        return ReadBatch(self.batch.pin_memory(), self.kept and self.kept.pin_memory())


def read_batches(
    collate: Callable[[Sequence[Any]], Batch],
    data: RunData,
    batches: MicroBatches,
    *,
    workers: int,
    pin: bool,
    look_up: Callable[[Tensor, Tensor | None], Kept] | None = None,
) -> Iterator[ReadBatch]:
    """One process's micro-batches, in order; see ``read_ahead``. ``look_up`` finds what is kept of a batch's images."""
    return read_ahead(_BatchReader(collate, data, look_up), batches, workers=workers, pin=pin)


def open_batches(
    loop: LoopConfig,
    tasks: RunTasks,
    data: RunData,
    accelerator: Accelerator,
    *,
    start: int,
    look_up: Callable[[Tensor, Tensor | None], Kept] | None = None,
) -> Iterator[ReadBatch]:
    """This process's micro-batches from a step to the end of the run, with what is kept of their images."""
    lengths = data.lengths()
    keys = MicroBatches(
        SampleStream(len(data), loop.seed, lengths=lengths, batch_size=loop.batch_size, views=loop.cache_features),
        start=start,
        stop=loop.steps,
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    workers = resolve_workers(loop.workers)
    pin = accelerator.device.type == "cuda"
    return read_batches(tasks.collate, data, keys, workers=workers, pin=pin, look_up=look_up)


@dataclass(frozen=True)
class _BatchReader:
    """Keys of a micro-batch to the batch."""

    collate: Callable[[Sequence[Any]], Batch]
    data: RunData
    look_up: Callable[[Tensor, Tensor | None], Kept] | None

    def __call__(self, keys: Sequence[tuple[int, int]]) -> ReadBatch:
        batch = self.collate([self.data[key] for key in keys])
        return ReadBatch(batch, None if self.look_up is None else self.look_up(batch.image_BCHW, batch.extent_B2))
