"""Features of a frozen backbone cached on disk: one file per image, keyed by a hash of its pixels.

A feature depends on pixels, backbone and layer only, so these are its key. Any change to an image (file, augmentation,
size) gives another key, and the features are computed; unchanged images are found again by any run.

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
"""Feature name (``tokens.9``, ``maps.2``) to values, bfloat16."""


@dataclass(frozen=True)
class CachedFeatures:
    """The cached features of the images of a batch.

    Attributes:
        keys: Key of each image, see ``FeatureStore.key``.
        features: Features of each image; None if they are not cached.
    """

    keys: list[str]
    features: list[Features | None]

    def pin_memory(self) -> CachedFeatures:
        """The features in page-locked memory. This frees a worker's shared memory and its open file descriptor."""
        pinned = [each and {name: tensor.pin_memory() for name, tensor in each.items()} for each in self.features]
        return CachedFeatures(self.keys, pinned)


class FeatureStore:
    """A folder of features of one backbone in one precision.

    Args:
        folder: The cache folder of all backbones.
        backbone_hash: Hash of the backbone's weights.
        precision: Precision of the backbone, such as ``float32``.
    """

    def __init__(self, folder: Path, backbone_hash: str, precision: str) -> None:
        self.folder = folder / f"{backbone_hash.removeprefix('sha256:')[:32]}-{precision}"

    @staticmethod
    def key(image_CHW: Tensor, extent: Extent | None = None) -> str:
        """The key of an image's features: a hash of its shape, its pixels, and the extent of its content.

        The image must be on the CPU. If there is no padding beyond ``extent``, the key does not depend on it.
        """
        attributes: tuple[object, ...] = (tuple(image_CHW.shape), image_CHW.dtype)
        if extent is not None and extent != image_CHW.shape[-2:]:
            attributes = (*attributes, extent)
        digest = hashlib.blake2b(str(attributes).encode(), digest_size=16)
        digest.update(image_CHW.contiguous().numpy().data)
        return digest.hexdigest()

    def read(self, key: str, names: frozenset[str]) -> Features | None:
        """The named features of an image; None if any is missing, or the file cannot be read."""
        try:
            with safe_open(self._file(key), framework="pt") as file:
                if not names <= set(file.keys()):
                    return None
                return {name: file.get_tensor(name) for name in names}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be read (%s): computing its features again", self._file(key), error)
            return None

    def write(self, key: str, features: Features) -> None:
        """Adds features to the file of an image, atomically for other processes.

        Raises:
            RunError: The file cannot be written, such as on a full disk.
        """
        file = self._file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            merged = {**self._present(file), **features}
            with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new-", delete=False) as new:
                pass
            try:
                save_file({name: tensor.contiguous() for name, tensor in merged.items()}, new.name)
                Path(new.name).replace(file)
            except BaseException:
                Path(new.name).unlink()
                raise
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"Features could not be written to {self.folder}: {error}. Free disk space, choose another "
                "--cache-folder, or omit --cache-features."
            ) from error

    def size(self) -> int:
        """Bytes of all cached features of this backbone."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))

    def room(self) -> int:
        """Free bytes on the disk of the cache folder."""
        existing = next(folder for folder in [self.folder, *self.folder.parents] if folder.exists())
        return shutil.disk_usage(existing).free

    def _present(self, file: Path) -> Features:
        try:
            with safe_open(file, framework="pt") as present:
                return {name: present.get_tensor(name) for name in present.keys()}  # noqa: SIM118  # not a dict
        except (OSError, SafetensorError):
            return {}

    def _file(self, key: str) -> Path:
        # 256 subfolders, so that none holds more than a few thousand files.
        return self.folder / key[:2] / f"{key}.safetensors"


def rounded(tensor: Tensor) -> Tensor:
    """A copy in the stored form: bfloat16, on the CPU."""
    return tensor.detach().to("cpu", torch.bfloat16, copy=True)
