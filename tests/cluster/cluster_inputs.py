"""Inputs of the tests of clusters: images in every form that is read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def write_photos(folder: Path, count: int) -> list[Path]:
    """Images of two sizes."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0)
    paths = [folder / f"{index:02}.png" for index in range(count)]
    for index, path in enumerate(paths):
        size = (30, 40, 3) if index % 3 else (40, 30, 3)
        Image.fromarray(pixels.integers(0, 256, size, dtype=np.uint8)).save(path)
    return paths


def write_tar(file: Path, photos: list[Path]) -> Path:
    """A tar file as WebDataset writes it: an image and its label per key."""
    with tarfile.open(file, "w") as tar:
        for photo in photos:
            tar.add(photo, f"train/{photo.name}")
            label = tarfile.TarInfo(f"train/{photo.stem}.cls")
            label.size = 1
            tar.addfile(label, io.BytesIO(b"3"))
    return file


def write_parquet(file: Path, photos: list[Path], **columns: list[object]) -> Path:
    """Encoded images as the hub stores them, in row groups of two."""
    images = [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos]
    pq.write_table(pa.table({"image": images} | columns), file, row_group_size=2)
    return file
