"""Training data: resized images and tokens.

Shapes: I images, H W pixels, B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitsplit.data.images import read_image
from vitsplit.errors import DataError
from vitsplit.tasks.vqa.config import VqaConfig
from vitsplit.tasks.vqa.prompts import Prompter, Tokens
from vitsplit.tasks.vqa.samples import Sample, SampleSet
from vitsplit.tasks.vqa.sequence import TokenBatch, stack

BORDER = (122, 116, 104)
"""Padding color of ``--fit pad``: the mean of CLIP's pixels, as in LLaVA-1.5."""


@dataclass(frozen=True)
class VqaSample:
    """A preprocessed sample.

    Attributes:
        image_CHW: uint8, of the configured size; None for text only.
        conversations: Its tokenized conversations.
        name: Name for errors.
    """

    image_CHW: Tensor | None
    conversations: tuple[Tokens, ...]
    name: str


@dataclass(frozen=True)
class VqaBatch:
    """A batch.

    Attributes:
        image_BCHW: uint8; one black image if no sample has an image.
        tokens: The sequences.
        names: Names of the samples, for errors.
        extent_B2: See ``tasks.base.Batch``; always None.
    """

    image_BCHW: Tensor
    tokens: TokenBatch
    names: list[str]
    extent_B2: Tensor | None = None

    def to(self, device: Any) -> VqaBatch:
        """Moves the batch to a device."""
        return VqaBatch(self.image_BCHW.to(device, non_blocking=True), self.tokens.to(device), self.names)

    def pin_memory(self) -> VqaBatch:
        """Copies the batch to pinned memory; called by the data loader."""
        return VqaBatch(self.image_BCHW.pin_memory(), self.tokens.pin_memory(), self.names)


def collate(samples: Sequence[VqaSample], config: VqaConfig, num_visual: int) -> VqaBatch:
    """Collates samples with and without images.

    Args:
        samples: The samples.
        config: Settings.
        num_visual: Visual tokens per image, which are included in ``config.max_length``.
    """
    images = [sample.image_CHW for sample in samples if sample.image_CHW is not None]
    rows, count = [], 0
    for sample in samples:
        rows.append(-1 if sample.image_CHW is None else count)
        count += sample.image_CHW is not None
    conversations = [sample.conversations for sample in samples]
    tokens = stack(conversations, rows, max_length=config.max_length, num_visual=num_visual)
    black_CHW = torch.zeros(3, *config.crop_size, dtype=torch.uint8)
    return VqaBatch(torch.stack(images or [black_CHW]), tokens, [sample.name for sample in samples])


@dataclass(frozen=True)
class TrainVqa:
    """Training samples: ``data[index, seed]`` is the sample ``index``, with questions drawn by ``seed``.

    A pure function of both, so results do not depend on the number of workers or on resuming.
    """

    data: SampleSet
    config: VqaConfig
    prompter: Prompter

    def __len__(self) -> int:
        return len(self.data)

    def lengths(self) -> list[int] | None:
        """Approximate sample lengths, negative for text only; None without ``group_by_length``."""
        if not self.config.group_by_length:
            return None
        return [sample.length if sample.image is not None else -sample.length for sample in self.data.samples]

    def one_per_image(self) -> list[int]:
        """Indices of the first sample of each image, in order; text-only samples are excluded."""
        first = {sample.image: index for index, sample in reversed(list(enumerate(self.data.samples)))}
        return sorted(index for image, index in first.items() if image is not None)

    def __getitem__(self, key: tuple[int, int]) -> VqaSample:
        index, seed = key
        sample = self.data.samples[index]
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(sample.conversations), generator=generator)[: self.config.questions_per_image]
        conversations = [sample.conversations[i] for i in chosen.tolist()]
        image_path = sample.image
        if image_path is not None and self.config.shuffle_images:
            image_path = self._other_image(index)
        image_CHW = None if image_path is None else fit_image(read_image(image_path), self.config)
        return VqaSample(
            image_CHW,
            tuple(self.prompter.conversation_tokens(each, has_image=image_CHW is not None) for each in conversations),
            sample.name,
        )

    def _other_image(self, index: int) -> Any:
        """The image of another sample, at an offset of half the file; deterministic."""
        samples = self.data.samples
        away = (samples[(index + len(samples) // 2 + i) % len(samples)].image for i in range(len(samples)))
        other = next((image for image in away if image not in (None, samples[index].image)), None)
        if other is None:
            raise DataError(f"{self.data.file}: --shuffle-images needs samples of at least two images.")
        return other


@dataclass(frozen=True)
class ValVqaSample:
    """A validation sample.

    Attributes:
        image_CHW: uint8, of the configured size; black for text only.
        sample: Its questions and answers.
    """

    image_CHW: Tensor
    sample: Sample


@dataclass(frozen=True)
class ValVqa:
    """Validation samples with their images."""

    data: SampleSet
    config: VqaConfig

    def __len__(self) -> int:
        return len(self.data)

    def load(self, index: int) -> ValVqaSample:
        """Reads one sample.

        Raises:
            DataError: The image cannot be read.
        """
        return load_val_sample(self.data.samples[index], self.config)


def load_val_sample(sample: Sample, config: VqaConfig) -> ValVqaSample:
    """Loads a sample with its image; raises a DataError if it cannot be read."""
    if sample.image is None:
        return ValVqaSample(torch.zeros(3, *config.crop_size, dtype=torch.uint8), sample)
    return ValVqaSample(fit_image(read_image(sample.image), config), sample)


def fit_image(image_CHW: Tensor, config: VqaConfig) -> Tensor:
    """Resizes an image (uint8) to ``config.crop_size``, see ``VqaConfig.fit``."""
    # Imported lazily, since torchvision takes seconds to import.
    from torchvision.transforms.v2 import functional as TF

    height, width = config.crop_size
    if config.fit == "pad":
        image_CHW = _pad(image_CHW, width / height)
    elif config.fit == "crop":
        image_CHW = _cut(image_CHW, width / height)
    # ``stretch`` resizes as the other tasks do, so that the backbone pass can be shared; otherwise as CLIP.
    bilinear, bicubic = TF.InterpolationMode.BILINEAR, TF.InterpolationMode.BICUBIC
    interpolation = bilinear if config.fit == "stretch" else bicubic
    return TF.resize(image_CHW, [height, width], interpolation=interpolation, antialias=True)


def _pad(image_CHW: Tensor, aspect: float) -> Tensor:
    """Pads both sides to width / height = ``aspect``."""
    height, width = image_CHW.shape[-2:]
    more_height, more_width = max(0, round(width / aspect) - height), max(0, round(height * aspect) - width)
    sides = (more_width // 2, more_width - more_width // 2, more_height // 2, more_height - more_height // 2)
    return torch.stack(
        [F.pad(channel_HW, sides, value=value) for channel_HW, value in zip(image_CHW, BORDER, strict=True)]
    )


def _cut(image_CHW: Tensor, aspect: float) -> Tensor:
    """Center crop to width / height = ``aspect``."""
    height, width = image_CHW.shape[-2:]
    new_height, new_width = min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return image_CHW[:, top : top + new_height, left : left + new_width]
