"""What a frozen backbone computed of images, kept on disk: one file per image, found by the image's own pixels.

Pixels, backbone and layer are all that a feature depends on, so they are all that it is found by. Whatever changes an
image (the file, the augmentation, the size it is brought to) makes another image of it, whose features are computed;
and what has not changed is found again, whichever run asks.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitsplit.data.content_size import Extent
from vitsplit.errors import RunError

logger = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""Name of a feature (``tokens.9``, ``maps.2``) to its values, bfloat16."""


@dataclass(frozen=True)
class Kept:
    """What is kept of the images of a batch.

    Attributes:
        keys: What the features of each image are found by.
        features: The features of each; None where they must be computed.
    """

    keys: list[str]
    features: list[Features | None]

    def pin_memory(self) -> Kept:
        """In page-locked memory. What a worker sent is freed, and with it the file that it holds open here."""
        pinned = [each and {name: tensor.pin_memory() for name, tensor in each.items()} for each in self.features]
        return Kept(self.keys, pinned)


class FeatureStore:
    """A folder of features of one backbone in one precision.

    Args:
        folder: Where the features of all backbones are.
        backbone_hash: Hash of the backbone's weights.
        precision: What it computes in, such as ``fp32``.
    """

    def __init__(self, folder: Path, backbone_hash: str, precision: str) -> None:
        self.folder = folder / f"{backbone_hash.removeprefix('sha256:')[:32]}-{precision}"

    @staticmethod
    def key(image_CHW: Tensor, extent: Extent | None = None) -> str:
        """What an image's features are found by: a hash of its shape, its pixels, and where its padding begins.

        The image is on the CPU. Without padding beyond ``extent`` the key is that of the image alone.
        """
        stated: tuple[object, ...] = (tuple(image_CHW.shape), image_CHW.dtype)
        if extent is not None and extent != image_CHW.shape[-2:]:
            stated = (*stated, extent)
        digest = hashlib.blake2b(str(stated).encode(), digest_size=16)
        digest.update(image_CHW.contiguous().numpy().data)
        return digest.hexdigest()

    def read(self, key: str, names: frozenset[str]) -> Features | None:
        """The named features of an image; None where one of them is not there, or its file cannot be read."""
        try:
            with safe_open(self._file(key), framework="pt") as file:
                if not names <= set(file.keys()):
                    return None
                return {name: file.get_tensor(name) for name in names}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s is computed anew: it cannot be read (%s)", self._file(key), error)
            return None

    def write(self, key: str, features: Features) -> None:
        """Adds features to those that are kept of an image. Other processes see the file as it was, or as it will be.

        Raises:
            RunError: They cannot be written, such as on a full disk.
        """
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            together = {**self._present(file), **features}
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new-", delete=False) as new:
                pass
            try:
                save_file({name: tensor.contiguous() for name, tensor in together.items()}, new.name)
                Path(new.name).replace(file)
            except BaseException:
                Path(new.name).unlink()
                raise
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"Features could not be kept in {self.folder}: {error}. Nothing else was harmed: make room there, give "
                "--cache-folder another one, or leave --cache-features away."
            ) from error

    def size(self) -> int:
        """Bytes of what is kept of this backbone."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))

    def room(self) -> int:
        """Bytes that are free where the features go."""
        there = next(folder for folder in [self.folder, *self.folder.parents] if folder.exists())
        return shutil.disk_usage(there).free

    def _present(self, file: Path) -> Features:
        try:
            with safe_open(file, framework="pt") as present:
                return {name: present.get_tensor(name) for name in present.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError):
            return {}

    def _file(self, key: str) -> Path:
        # Folders of a few thousand files at most, also for a hundred thousand images.
        return self.folder / key[:2] / f"{key}.safetensors"


def rounded(tensor: Tensor) -> Tensor:
    """As it is kept: bfloat16, on the CPU, without the rest of a batch."""
    return tensor.detach().to("cpu", torch.bfloat16, copy=True)
