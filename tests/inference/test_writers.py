"""Files written row by row, read back by Pillow and libvips."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from vitsplit.inference import writers
from vitsplit.inference.writers import PngWriter, Thumbnail, TiffWriter

pyvips = pytest.importorskip("pyvips")
RNG = np.random.default_rng(0)
PALETTE = [(10, 200, 30), (0, 0, 0), (255, 1, 128)]
SIZES = [(1, 1), (3, 700), (700, 3), (256, 512), (300, 257)]


def write(writer, rows, step=37):
    for top in range(0, len(rows), step):
        writer.write(rows[top : top + step])
    return writer.close()


@pytest.mark.parametrize("size", SIZES)
def test_png_with_a_palette(tmp_path, size):
    mask = RNG.integers(0, 3, size, dtype=np.uint8)
    path = write(PngWriter(tmp_path / "new" / "mask.png", size, palette=PALETTE), mask)
    image = Image.open(path)
    assert image.mode == "P" and np.array_equal(np.asarray(image), mask)
    assert image.getpalette()[:9] == [value for color in PALETTE for value in color]
    assert np.array_equal(pyvips.Image.new_from_file(str(path)).numpy()[..., :3], np.array(PALETTE)[mask])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", ["palette", "gray", "meters"])
def test_tiled_tiff(tmp_path, monkeypatch, size, big, kind):
    if big:
        monkeypatch.setattr(writers, "_CLASSIC_TIFF_BYTES", 0)
    dtype = np.float32 if kind == "meters" else np.uint8
    values = (RNG.random(size) * 3).astype(dtype)
    options = {"palette": PALETTE} if kind == "palette" else {}
    path = write(TiffWriter(tmp_path / "a.tif", size, dtype=dtype, description="in meters", **options), values)
    assert struct.unpack("<H", path.read_bytes()[2:4])[0] == (43 if big else 42)
    image = Image.open(path)
    assert image.mode == {"palette": "P", "gray": "L", "meters": "F"}[kind]
    assert np.array_equal(np.asarray(image), values)
    assert image.tag_v2[270] == "in meters" and image.tag_v2[322] == image.tag_v2[323] == 256
    array = pyvips.Image.new_from_file(str(path), fail_on="warning").numpy()
    expected = np.array(PALETTE)[values] if kind == "palette" else values
    assert np.array_equal(array.reshape(expected.shape), expected)


def test_files_are_written_atomically(tmp_path):
    writer = PngWriter(tmp_path / "mask.png", (4, 4), palette=PALETTE)
    writer.write(np.zeros((2, 4), np.uint8))
    assert not (tmp_path / "mask.png").exists()
    writer.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_writers_hold_one_row_of_tiles_in_memory(tmp_path, kind):
    size = (8192, 2048)
    rows = np.zeros((64, size[1]), np.uint8)
    tracemalloc.start()
    path = tmp_path / "a"
    writer = PngWriter(path, size, palette=PALETTE) if kind == "png" else TiffWriter(path, size, dtype=np.uint8)
    for _ in range(size[0] // len(rows)):
        writer.write(rows)
    writer.close()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < size[0] * size[1] / 8


@pytest.mark.parametrize("size", [(1, 1), (10, 1), (1, 97), (40, 97), (100, 100)])
@pytest.mark.parametrize("step", [1, 7, 100])
def test_small_copies_are_averaged_or_sampled(size, step):
    picture = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    average, middle = Thumbnail(size, 20, average=True), Thumbnail(size, 20, average=False)
    for top in range(0, size[0], step):
        average.write(picture[top : top + step])
        middle.write(picture[top : top + step, :, 0])
    factor = -(-max(size) // 20)
    assert max(average.array().shape[:2]) <= 20
    for y, row in enumerate(average.array()):
        for x, color in enumerate(row):
            square = picture[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
            assert np.abs(color - square.mean((0, 1))).max() <= 0.5 + 1e-9
            assert middle.array()[y, x] in square[..., 0]
    assert (average.array().shape[:2]) == middle.array().shape
