import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vitsplit.data import decoding, images
from vitsplit.data.decoding import decode_image, image_kind, image_size
from vitsplit.data.images import read_image, read_mask, to_image_tensor
from vitsplit.errors import DataError, ImageFormatError, ImageTooLargeError

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def save(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def read_image_with_kind(path):
    return read_image(path), image_kind(decode_image(path))


def message(call, *arguments):
    with pytest.raises(DataError) as caught:
        call(*arguments)
    return str(caught.value)


def test_rgb_png_round_trip(tmp_path):
    array = noise(7, 11, 3)
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", array))
    assert kind == "RGB"
    assert image_CHW.dtype == torch.uint8
    assert np.array_equal(image_CHW.numpy(), array.transpose(2, 0, 1))


def test_gray_is_repeated(tmp_path):
    array = noise(5, 6)
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", array))
    assert kind == "gray"
    assert np.array_equal(image_CHW.numpy(), np.stack([array] * 3))


def test_16_bit_is_scaled_not_clipped(tmp_path):
    array = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", array))
    assert kind == "16-bit gray"
    assert image_CHW[0].tolist() == np.rint(array / 65535 * 255).astype(int).tolist()


def test_palette_gives_colors(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode=None).convert("L")
    image = Image.frombytes("P", (2, 2), image.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", image))
    assert kind == "palette"
    assert image_CHW[:, 1, 0].tolist() == [70, 80, 90]


def test_alpha_is_dropped(tmp_path):
    array = noise(4, 4, 4)
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", array))
    assert kind == "RGB with alpha"
    assert np.array_equal(image_CHW.numpy(), array[..., :3].transpose(2, 0, 1))


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.jpg", image, quality=95))
    assert kind == "CMYK"
    red, green, blue = image_CHW.float().mean((1, 2)).tolist()
    assert red > 240 and green < 15 and blue < 15


def test_exif_rotation_is_applied(tmp_path):
    array = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image_CHW, kind = read_image_with_kind(save(tmp_path / "a.png", array, exif=exif))
    assert kind == "RGB, turned by EXIF"
    assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), np.rot90(array, k=-1))


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated(tmp_path, suffix):
    path = save(tmp_path / f"cut.{suffix}", noise(64, 64, 3))
    path.write_bytes(path.read_bytes()[:-600])
    text = message(read_image, path)
    assert str(path) in text and "truncated or corrupt" in text and "Copy it again" in text


def test_corrupt(tmp_path):
    path = save(tmp_path / "broken.png", noise(64, 64, 3))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    text = message(read_image, path)
    assert str(path) in text and "corrupt" in text


def test_not_an_image(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("these are notes")
    text = message(read_image, path)
    assert str(path) in text and "not a supported image" in text and "remove the file" in text


def test_empty_missing_and_folder(tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    assert f"{empty}: the file is empty (0 bytes)" in message(read_image, empty)
    assert "not found" in message(read_image, tmp_path / "absent.png")
    assert "not a regular file" in message(read_image, tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = save(tmp_path / "huge.png", noise(64, 64))
    monkeypatch.setattr(decoding, "_LIMITS", decoding.DecodingLimits(pixels=1000))
    text = message(read_image, path)
    assert str(path) in text and "too large" in text and "tiles" in text


def test_limits_of_bytes():
    def refused(content, **limits):
        with pytest.raises(DataError) as caught:
            decoding.decode_bytes(content, "photo", decoding.DecodingLimits(**limits))
        return type(caught.value)

    files = {}
    for kind in ("PNG", "BMP", "JPEG"):
        file = io.BytesIO()
        options = {"progressive": True} if kind == "JPEG" else {}
        Image.fromarray(noise(30, 40, 3)).save(file, format=kind, **options)
        files[kind] = file.getvalue()
    assert decoding.decode_bytes(files["PNG"], "photo", decoding.DecodingLimits(pixels=1200)).size == (40, 30)
    assert refused(files["PNG"], pixels=1199) is ImageTooLargeError
    assert refused(files["BMP"], formats=("PNG", "JPEG")) is ImageFormatError
    assert refused(files["JPEG"], scans=2) is DataError
    assert decoding.decode_bytes(files["JPEG"], "photo", decoding.DecodingLimits(scans=20)).size == (40, 30)


def test_python_values_agree():
    array = noise(5, 7, 3)
    expected_CHW = torch.from_numpy(array).permute(2, 0, 1)
    values = {
        "array": array,
        "PIL image": Image.fromarray(array),
        "tensor": expected_CHW,
        "float array": array / 255.0,
        "float tensor": expected_CHW / 255,
        "float tensor, a little low": (expected_CHW / 255 - 0.001).clamp(min=0),
        "alpha": np.dstack([array, noise(5, 7)]),
        "16 bits": array.astype(np.uint16) * 257,
    }
    for name, value in values.items():
        assert torch.equal(to_image_tensor(value), expected_CHW), name


def test_python_bfloat16():
    assert to_image_tensor(torch.full((3, 2, 2), 0.5, dtype=torch.bfloat16)).unique().tolist() == [128]


def test_python_gray_values_agree():
    array = noise(5, 7)
    for value in (array, array[..., None], torch.from_numpy(array), torch.from_numpy(array)[None]):
        assert np.array_equal(to_image_tensor(value).numpy(), np.stack([array] * 3))


def test_python_path(tmp_path):
    array = noise(5, 7, 3)
    path = save(tmp_path / "a.png", array)
    assert torch.equal(to_image_tensor(path), to_image_tensor(array))
    assert torch.equal(to_image_tensor(str(path)), to_image_tensor(array))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros((3, 20, 20), np.uint8), "transpose(1, 2, 0)"),
        (torch.zeros(20, 20, 3, dtype=torch.uint8), "permute(2, 0, 1)"),
        (np.full((4, 4, 3), 200.0), "0..1"),
        (np.full((4, 4, 3), np.nan), "0..1"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one image at a time"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        ({"image": 1}, "dict"),
    ],
)
def test_invalid_python_values_are_rejected(value, expected):
    text = message(to_image_tensor, value, "third image")
    assert text.startswith("third image: ") and expected in text


def test_index_mask_and_palette_mask_give_ids(tmp_path):
    ids = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)
    image = Image.frombytes("P", (3, 2), ids.tobytes())
    image.putpalette(noise(768).tolist())
    for path in (save(tmp_path / "l.png", ids), save(tmp_path / "p.png", image)):
        mask_HW = read_mask(path)
        assert mask_HW.dtype == torch.uint8
        assert mask_HW.tolist() == ids.tolist()


def test_16_bit_and_1_bit_masks(tmp_path):
    ids = np.array([[0, 300], [1000, 65535]], dtype=np.uint16)
    assert read_mask(save(tmp_path / "a.png", ids)).tolist() == ids.tolist()
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert read_mask(save(tmp_path / "b.png", bits)).tolist() == [[0, 1]]


def test_rgb_mask_with_equal_channels_is_gray(tmp_path):
    ids = noise(4, 4)
    assert read_mask(save(tmp_path / "a.png", np.dstack([ids] * 3))).tolist() == ids.tolist()
    assert read_mask(save(tmp_path / "b.png", np.dstack([ids] * 3 + [noise(4, 4)]))).tolist() == ids.tolist()


def test_color_mask_without_a_table_is_rejected(tmp_path):
    array = np.zeros((4, 4, 3), np.uint8)
    array[:, :3] = (128, 64, 128)
    path = save(tmp_path / "colors.png", array)
    text = message(read_mask, path)
    assert str(path) in text and "#804080" in text and "mask_colors" in text and "index or palette PNG" in text


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_mask_with_two_equal_channels_is_a_color_mask(tmp_path, channel):
    array = np.full((4, 4, 3), 7, np.uint8)
    array[2, 2, channel] = 8
    assert "has colors" in message(read_mask, save(tmp_path / "a.png", array))


def test_color_mask_with_a_table(tmp_path):
    table = {(0, 0, 0): 255, (128, 64, 128): 0, (1, 2, 3): 1}
    ids = np.array([[0, 1], [255, 0]])
    array = np.array([[(128, 64, 128), (1, 2, 3)], [(0, 0, 0), (128, 64, 128)]], dtype=np.uint8)
    assert read_mask(save(tmp_path / "a.png", array), table).tolist() == ids.tolist()
    array[0, 0] = (128, 64, 129)
    array[1, 1] = (128, 64, 129)
    path = save(tmp_path / "b.png", array)
    text = message(read_mask, path, table)
    assert str(path) in text and "#804081 (2 pixels)" in text and "classes.json" in text


def test_float_mask_is_rejected(tmp_path):
    path = save(tmp_path / "a.tif", np.zeros((4, 4), np.float32))
    assert str(path) in message(read_mask, path)


def test_pil_image_from_memory():
    stream = io.BytesIO()
    Image.fromarray(noise(6, 6)).save(stream, format="PNG")
    assert to_image_tensor(Image.open(stream)).shape == (3, 6, 6)


ORIENTATIONS = {  # EXIF orientations as operations on rows and columns
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied_to_masks(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = ORIENTATIONS[orientation]
    ids = noise(5, 8) % 7
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_mask(save(tmp_path / name, ids, exif=exif)), turn(ids))
        wide = ids.astype(np.uint16) * 300
        assert np.array_equal(read_mask(save(tmp_path / f"wide_{name}", wide, exif=exif)), turn(wide))
    palette = Image.frombytes("P", (8, 5), ids.tobytes())
    palette.putpalette(noise(768).tolist())
    assert np.array_equal(read_mask(save(tmp_path / "p.png", palette, exif=exif)), turn(ids))
    colors = np.stack([ids, ids * 2, ids * 3], -1)
    table = {(k, 2 * k, 3 * k): k for k in range(7)}
    assert np.array_equal(read_mask(save(tmp_path / "c.png", colors, exif=exif), table), turn(ids))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_the_size_follows_the_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", noise(5, 8, 3), exif=exif)
    expected = ORIENTATIONS[orientation](np.zeros((5, 8))).shape
    assert image_size(path) == expected[::-1]
    assert read_image(path).shape[1:] == expected


def test_invalid_exif_is_ignored_or_one_error(tmp_path):
    for value in (b"MM", b"Exif\x00\x00XXXXXXXX", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01" * 40):
        path = save(tmp_path / "a.jpg", noise(6, 8, 3), exif=value)
        try:
            assert read_image(path).shape == (3, 6, 8)
        except DataError as error:
            assert str(path) in str(error)


def png(width, height):
    """The header of a PNG without its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 1000) + b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end


@pytest.mark.parametrize("side", [9460, 13_300, 20_000, 2**31 - 1])
def test_the_pixel_limit_is_checked_before_decoding(tmp_path, side, recwarn):
    # A file without pixel data: decoding it would report a truncated file.
    path = tmp_path / "large.png"
    path.write_bytes(png(side, side))
    for call in (read_image, read_mask, image_size):
        text = message(call, path)
        assert str(path) in text and "too large" in text
    path.write_bytes(png(9459, 9459))
    assert 9459**2 <= decoding.MAX_PIXELS < 9460**2
    assert "truncated" in message(read_image, path)
    assert not recwarn.list


def test_oversized_and_special_files_are_rejected(tmp_path):
    path = tmp_path / "large.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\x7fWEBPVP8L")
        file.truncate(1 << 40)  # sparse; Pillow would read it whole
    for any_size in (False, True):
        with pytest.raises(DataError, match=r"large\.webp"), decoding.open_image(path, any_size=any_size):
            pass
    os.mkfifo(tmp_path / "pipe.png")
    for call in (read_image, read_mask, image_size, decode_image):  # none of them waits for a writer
        assert "pipe" in message(call, tmp_path / "pipe.png")
    assert "/dev/zero" in message(read_image, "/dev/zero")


@pytest.mark.parametrize("kind", ["GIF", "TGA", "PCX", "ICO", "EPS", "SVG", "XPM"])
def test_unsupported_formats_are_not_decoded(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / "a.png"
    if kind in ("SVG", "XPM"):
        text = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
        path.write_text(text if kind == "SVG" else '/* XPM */\nstatic char *a[]={"1 1 1 1","a c #000","a"};')
    else:
        Image.fromarray(noise(16, 16, 3)).save(path, format=kind)
    error_text = message(read_image, path)
    assert str(path) in error_text and "PNG" in error_text


def test_every_listed_suffix_can_be_read(tmp_path):
    for suffix in decoding.IMAGE_SUFFIXES:
        assert read_image(save(tmp_path / f"a{suffix}", noise(6, 9, 3))).shape == (3, 6, 9)


def test_decompression_bombs_in_metadata_and_scans(tmp_path):
    text = PngInfo()
    text.add_text("note", "a" * 100_000_000, zip=True)
    path = save(tmp_path / "text.png", noise(8, 8, 3), pnginfo=text)
    assert path.stat().st_size < 200_000 and str(path) in message(read_image, path)
    path = tmp_path / "scans.jpg"
    Image.fromarray(noise(64, 64, 3)).save(path, progressive=True)
    assert read_image(path).shape == (3, 64, 64)
    content = path.read_bytes()
    start = content.rindex(b"\xff\xc4")  # the last scan, with its table
    path.write_bytes(content[:start] + content[start:-2] * 300 + content[-2:])
    error_text = message(read_image, path)
    assert str(path) in error_text and "scans" in error_text


def test_an_oversized_tiff_tile_is_rejected(tmp_path):
    path = tmp_path / "tile.tif"
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 65520, 323: 65520, 324: 8, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\x00" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert str(path) in message(read_image, path) and "65520x65520" in message(read_image, path)


def test_results_do_not_depend_on_the_block_size(tmp_path, monkeypatch):
    ids = noise(13, 7) % 5
    array = np.stack([ids * 7, ids, ids * 3], -1)
    colors = {(7 * k, k, 3 * k): k for k in range(4)}
    path = save(tmp_path / "a.png", array)
    for pixels in (1, 10, 10_000):
        monkeypatch.setattr(images, "BLOCK_PIXELS", pixels)
        assert f"#1c040c ({(ids == 4).sum()} pixels)" in message(read_mask, path, colors)
        assert np.array_equal(read_mask(path, {**colors, (28, 4, 12): 255}), np.where(ids == 4, 255, ids))
        assert images.find_colors(path, 255) == {(7 * k, k, 3 * k) for k in range(5)}
        assert len(images.find_colors(path, 2)) > 2
        assert [row for rows in images.row_blocks(13, 7) for row in range(rows.start, rows.stop)] == [*range(13)]


def test_the_pixel_limit_applies_to_pil_images():
    with pytest.raises(DataError, match="13000x13000"):
        to_image_tensor(Image.new("1", (13_000, 13_000)), "camera")


def test_large_plain_text_pixmaps_are_rejected_before_reading(tmp_path):
    small, large = tmp_path / "small.ppm", tmp_path / "large.ppm"
    small.write_bytes(b"P3 2 1 255\n255 0 0  0 0 255\n")
    assert read_image(small).flatten(1).T.tolist() == [[255, 0, 0], [0, 0, 255]]
    large.write_bytes(b"P3 3000 3000 255\n" + b"7 " * 9_000_000)
    with pytest.raises(DataError, match=r"large\.ppm"):
        read_image(large)
