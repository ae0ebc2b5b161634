"""Reading by strips, against the same file read whole by Pillow."""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vitsplit.data.images import read_image
from vitsplit.errors import ConfigError, DataError
from vitsplit.inference.strips import ImageStrips, is_large

pyvips = pytest.importorskip("pyvips")
RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 300, 210


def noise(*channels, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (HEIGHT, WIDTH, *channels), dtype=dtype)


def smooth():
    """Colors that change slowly: JPEG decoders differ by rounding only."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([y * 0.8, x, 255 - (x + y) * 0.4], -1).clip(0, 255).astype(np.uint8)


def palette(path):
    image = Image.fromarray(noise() % 7).convert("P")
    image.putpalette(RNG.integers(0, 256, 21, dtype=np.uint8).tolist())
    image.save(path)


def vips_tiff(path, array, **options):
    pyvips.Image.new_from_array(array).tiffsave(str(path), **options)


EXACT = {
    "gray.png": lambda path: Image.fromarray(noise()).save(path),
    "rgb.png": lambda path: Image.fromarray(noise(3)).save(path),
    "rgba.png": lambda path: Image.fromarray(noise(4)).save(path),
    "gray_alpha.png": lambda path: Image.fromarray(noise(2), "LA").save(path),
    "palette.png": palette,
    "one_bit.png": lambda path: Image.fromarray(noise() > 127).save(path),
    "grey16.png": lambda path: Image.fromarray(noise(dtype=np.uint16)).save(path),
    "rgb16.png": lambda path: pyvips.Image.new_from_array(noise(3, dtype=np.uint16)).pngsave(str(path), bitdepth=16),
    "interlaced.png": lambda path: pyvips.Image.new_from_array(noise(3)).pngsave(str(path), interlace=True),
    "strips.tif": lambda path: Image.fromarray(noise(3)).save(path),
    "grey16.tif": lambda path: Image.fromarray(noise(dtype=np.uint16)).save(path),
    "float.tif": lambda path: Image.fromarray(RNG.random((HEIGHT, WIDTH), dtype=np.float32)).save(path),
    "palette.tif": palette,
    "tiled.tif": lambda path: vips_tiff(path, noise(3), tile=True, tile_width=64, tile_height=64, compression="lzw"),
    "big.tif": lambda path: vips_tiff(path, noise(3), tile=True, tile_width=32, tile_height=16, bigtiff=True),
    "pyramid.tif": lambda path: vips_tiff(path, noise(3), tile=True, tile_width=64, tile_height=64, pyramid=True),
    "lossless.webp": lambda path: Image.fromarray(noise(3)).save(path, lossless=True),
}
NEAR = {
    "photo.jpg": lambda path: Image.fromarray(smooth()).save(path, quality=90),
    "progressive.jpg": lambda path: Image.fromarray(smooth()).save(path, quality=90, progressive=True),
    "gray.jpg": lambda path: Image.fromarray(smooth()[..., 0]).save(path, quality=90),
    "cmyk.jpg": lambda path: Image.fromarray(smooth()).convert("CMYK").save(path, quality=90),
}


def read_by_strips(path, height=64, step=48, scale=1.0):
    strips = ImageStrips(path, scale)
    parts = []
    for top in range(0, strips.size[0], step):
        rows_CHW = strips.rows(top, min(strips.size[0], top + height))
        assert rows_CHW.dtype == torch.uint8 and rows_CHW.shape[0] == 3
        parts.append(rows_CHW[:, :step])
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", EXACT)
def test_strips_equal_the_rows_of_the_whole_image(tmp_path, name):
    path = tmp_path / name
    EXACT[name](path)
    assert torch.equal(read_by_strips(path), read_image(path))


@pytest.mark.parametrize("name", NEAR)
def test_jpeg_is_equal_within_rounding(tmp_path, name):
    path = tmp_path / name
    NEAR[name](path)
    whole_CHW = read_image(path)
    assert (read_by_strips(path).int() - whole_CHW.int()).abs().max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(smooth()).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    strips = ImageStrips(path)
    assert strips.own_size == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert (read_by_strips(path).int() - read_image(path).int()).abs().max() <= 2


@pytest.mark.parametrize("scale", [0.25, 0.525, 2.0])
def test_scale_equals_pillow_resizing(tmp_path, scale):
    path = tmp_path / "smooth.png"
    Image.fromarray(smooth()).save(path)
    strips = ImageStrips(path, scale)
    size = (int(HEIGHT * scale + 0.5), int(WIDTH * scale + 0.5))
    assert strips.size == size and strips.own_size == (HEIGHT, WIDTH)
    expected = np.asarray(Image.fromarray(smooth()).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    difference = np.abs(read_by_strips(path, scale=scale).permute(1, 2, 0).numpy() - expected)
    assert difference[2:-2, 2:-2].max() <= 2 and difference.max() <= 6


def test_downscaling_averages_pixels(tmp_path):
    path = tmp_path / "board.png"
    Image.fromarray((np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255).astype(np.uint8)).save(path)
    small_CHW = read_by_strips(path, scale=0.25).float()
    assert abs(small_CHW[:, 1:-1, 1:-1] - 127.5).max() < 12


def test_only_the_rows_in_use_are_in_memory(tmp_path):
    path = tmp_path / "rgb.png"
    EXACT["rgb.png"](path)
    strips = ImageStrips(path)
    strips.rows(0, 64)
    assert strips.rows(48, 112).untyped_storage().nbytes() == 3 * 64 * WIDTH
    with pytest.raises(AssertionError, match="in order"):
        strips.rows(0, 10)


@pytest.mark.parametrize("name", ["rgb.png", "strips.tif", "photo.jpg"])
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    {**EXACT, **NEAR}[name](path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(DataError, match=r"truncated or corrupt|cannot be read in strips") as caught:
        read_by_strips(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_corrupt_pixels_are_named(tmp_path):
    path = tmp_path / "rgb.png"
    EXACT["rgb.png"](path)
    content = bytearray(path.read_bytes())
    content[90_000:90_400] = bytes(400)
    path.write_bytes(content)
    with pytest.raises(DataError, match="truncated or corrupt"):
        read_by_strips(path)


def test_missing_empty_and_unknown_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"not found"):
        ImageStrips(tmp_path / "absent.png")
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError, match="empty"):
        ImageStrips(empty)
    notes = tmp_path / "notes.png"
    notes.write_text("these are notes")
    with pytest.raises(DataError, match="PNG, TIFF, JPEG or WebP") as caught:
        ImageStrips(notes)
    assert str(notes) in str(caught.value) and "\n" not in str(caught.value)


def test_unsupported_pixel_formats_are_rejected(tmp_path):
    path = tmp_path / "meters.tif"
    Image.fromarray(np.full((HEIGHT, WIDTH), 7.5, np.float32)).save(path)
    with pytest.raises(DataError, match=r"float values must be in 0\.\.1"):
        read_by_strips(path)
    vips_tiff(tmp_path / "complex.tif", np.zeros((4, 4), np.int32))
    with pytest.raises(DataError, match=r"unsupported pixel format"):
        ImageStrips(tmp_path / "complex.tif")


def test_a_scale_that_is_too_small_is_rejected(tmp_path):
    path = tmp_path / "rgb.png"
    EXACT["rgb.png"](path)
    with pytest.raises(DataError, match=f"--scale 0.001 .* {WIDTH}x{HEIGHT} pixels"):
        ImageStrips(path, 0.001)
    for scale in (0.0, -1.0):
        with pytest.raises(ConfigError, match=f"--scale {scale:g}: must be above 0"):
            ImageStrips(path, scale)


def test_without_pyvips_one_message_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "rgb.png"
    EXACT["rgb.png"](path)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitsplit\[large\]'"):
        ImageStrips(path)


def header_only(path, width, height):
    """A PNG that ends before its pixel data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT")
    return path


@pytest.mark.parametrize(
    ("width", "height", "large"),
    [(10_000, 5_000, False), (10_000, 5_001, True), (12_000, 9_000, True), (20_000, 20_000, True), (30_000, 10, False)],
)
def test_large_images_are_detected_from_the_header(tmp_path, width, height, large):
    # Pillow warns above 89 million pixels, and raises above twice that number.
    path = header_only(tmp_path / "header.png", width, height)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_large(path) is large


def test_invalid_files_are_not_large(tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("these are notes")
    assert not is_large(notes) and not is_large(tmp_path / "absent.png") and not is_large(tmp_path)


@pytest.mark.parametrize("kind", ["svg", "gif", "ppm", "fifo", "link"])
def test_libvips_reads_only_listed_formats(tmp_path, kind):
    """Detected from the content; each file has the suffix of a PNG."""
    path = tmp_path / "a.png"
    if kind == "svg":
        path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        Image.fromarray(noise(3)).save(path, format=kind.upper())
    with pytest.raises(DataError, match=r"a\.png"):
        ImageStrips(path)
    assert not is_large(path)


def test_untrusted_readers_of_libvips_are_blocked(tmp_path):
    Image.fromarray(noise(3)).save(tmp_path / "a.png")
    ImageStrips(tmp_path / "a.png")
    with pytest.raises(pyvips.Error):
        pyvips.Image.svgload_buffer(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
