"""Data order: an infinite stream of samples that depends on the seed only.

Each position of the stream is a sample and the seed of its augmentation. Step s trains on the positions
``[s * B, (s + 1) * B)`` for any number of processes, micro-batches and workers, so a run can be resumed from s alone.
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
from vitsplit.engine.feature_store import CachedFeatures
from vitsplit.engine.run_data import Batch, RunData
from vitsplit.engine.run_tasks import RunTasks
from vitsplit.errors import ConfigError, DataError
from vitsplit.train_config import LoopConfig

LENGTH_POOL = 50
"""Number of batches that are sorted by length together; a larger pool makes the order of an epoch less random."""


def derive_seed(*parts: int | str) -> int:
    """Derives a seed below 2**63 from strings and integers by hashing; different parts give independent seeds."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SampleStream:
    """An infinite stream of ``(index, sample seed)``: every epoch visits every sample once, in a new random order.

    Args:
        num_samples: Size of the training set.
        seed: Seed of the run.
        lengths: Approximate length of every sample, see ``LengthGroups``; None: samples are not grouped by length.
        batch_size: Number of samples of similar length, with ``lengths``.
        views: Number of fixed augmentations of a sample, which its epochs cycle through and which are the same for
            every seed; 0: a new augmentation every time.

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
        """The index of the sample at a position, and the seed of its augmentation."""
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            self._order = torch.randperm(self.num_samples, generator=generator).tolist()
            if self.lengths is not None:
                # The first samples complete the last batch of the previous epoch.
                first = -epoch * self.num_samples % self.batch_size
                rest = group_by_length(self._order[first:], self.lengths, self.batch_size, generator)
                self._order = [*self._order[:first], *rest]
            self._epoch = epoch
        index = self._order[offset]
        if self.views:
            return index, derive_seed("view", index, epoch % self.views)
        return index, derive_seed(self.seed, "sample", position)


def group_by_length(
    order: Sequence[int], lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[int]:
    """Reorders samples so that a batch has samples of one kind and of similar length, as in LLaVA-1.5's second stage.

    Args:
        order: Sample indices in random order.
        lengths: Approximate length of every sample; negative for samples of the second kind.
        batch_size: Samples per batch. The remainder of each kind comes last, in mixed batches.
        generator: Random generator of the batch order.
    """
    batches: list[list[int]] = []
    remainder: list[int] = []
    for kind in (
        [index for index in order if lengths[index] >= 0],
        [index for index in order if lengths[index] < 0],
    ):
        whole = len(kind) // batch_size * batch_size
        remainder += kind[whole:]
        pool = LENGTH_POOL * batch_size
        for begin in range(0, whole, pool):
            by_length = sorted(kind[begin : min(begin + pool, whole)], key=lambda index: abs(lengths[index]))
            batches += [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [index for batch in shuffled for index in batches[batch]] + remainder


class MicroBatches:
    """The keys of one process's micro-batches in order, as a batch sampler.

    Args:
        stream: The stream of samples.
        start: First step.
        stop: Step after the last one.
        batch_size: Images per step over all processes.
        accumulate: Micro-batches per step.
        rank: Rank of this process.
        world: Number of processes.

    Raises:
        ConfigError: ``batch_size`` is not divisible by ``world * accumulate``.
    """

    def __init__(
        self, stream: SampleStream, *, start: int, stop: int, batch_size: int, accumulate: int, rank: int, world: int
    ) -> None:
        if accumulate < 1 or batch_size < 1 or batch_size % (world * accumulate):
            raise ConfigError(
                f"A batch of {batch_size} images cannot be divided among {world} process(es) in {accumulate} "
                f"micro-batch(es) each: --batch-size must be a multiple of {world * max(1, accumulate)}."
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
    """A batch, with its cached features if features are cached."""

    batch: Batch
    cached: CachedFeatures | None = None

    def to(self, device: Any) -> ReadBatch:
        """The batch on a device. Cached features are moved when they are used."""
        return ReadBatch(self.batch.to(device), self.cached)

    def pin_memory(self) -> ReadBatch:
        """The batch and its cached features in page-locked memory."""
        return ReadBatch(self.batch.pin_memory(), self.cached and self.cached.pin_memory())


def read_batches(
    collate: Callable[[Sequence[Any]], Batch],
    data: RunData,
    batches: MicroBatches,
    *,
    workers: int,
    pin: bool,
    look_up: Callable[[Tensor, Tensor | None], CachedFeatures] | None = None,
) -> Iterator[ReadBatch]:
    """One process's micro-batches in order, see ``read_ahead``. ``look_up`` returns the cached features of a batch."""
    return read_ahead(_BatchReader(collate, data, look_up), batches, workers=workers, pin=pin)


def open_batches(
    loop: LoopConfig,
    tasks: RunTasks,
    data: RunData,
    accelerator: Accelerator,
    *,
    start: int,
    look_up: Callable[[Tensor, Tensor | None], CachedFeatures] | None = None,
) -> Iterator[ReadBatch]:
    """This process's micro-batches from a step to the end of the run, with their cached features."""
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
    """Reads the samples of a micro-batch by their keys, and collates them."""

    collate: Callable[[Sequence[Any]], Batch]
    data: RunData
    look_up: Callable[[Tensor, Tensor | None], CachedFeatures] | None

    def __call__(self, keys: Sequence[tuple[int, int]]) -> ReadBatch:
        batch = self.collate([self.data[key] for key in keys])
        return ReadBatch(batch, None if self.look_up is None else self.look_up(batch.image_BCHW, batch.extent_B2))
