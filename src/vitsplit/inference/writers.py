"""Writers of PNG and tiled TIFF files of any size from top to bottom, and scaled-down copies of large pictures.

They take rows incrementally, hold at most one row of tiles in memory, and move the file to its path when it is
complete.

Shapes: C channels, H W pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitsplit.data.decoding import RGB

OVERLAY_SIDE = 4000
"""Longest side of overlays."""
TIFF_TILE = 256
_CLASSIC_TIFF_BYTES = 1 << 32
_SHORT, _LONG, _ASCII, _LONG8 = 3, 4, 2, 16  # field types of TIFF
_LETTERS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}


class RowFile:
    """A file with a temporary name until ``finish``; ``discard`` removes it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file: BinaryIO = self._part.open("wb")

    def write_bytes(self, content: bytes) -> None:
        """Appends bytes."""
        self._file.write(content)

    def finish(self) -> Path:
        """Moves the file to its path, which is returned."""
        self._file.close()
        return self._part.replace(self.path)

    def discard(self) -> None:
        """Removes the incomplete file."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class PngWriter(RowFile):
    """A PNG of class ids with a palette.

    Args:
        path: The file.
        size: Height and width.
        palette: Colors of the values.
    """

    def __init__(self, path: Path, size: tuple[int, int], *, palette: Sequence[RGB]) -> None:
        super().__init__(path)
        self._deflate = zlib.compressobj()
        self._file.write(b"\x89PNG\r\n\x1a\n")
        # 8 bits per pixel, palette; default compression and filters, not interlaced.
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 3, 0, 0, 0))
        self._chunk(b"PLTE", bytes(value for color in palette for value in color))

    def write(self, rows_HW: NDArray[np.uint8]) -> None:
        """Appends rows."""
        # Each line starts with its filter: 0 for none, which is best for class ids.
        lines = np.pad(rows_HW, ((0, 0), (1, 0)))
        self._chunk(b"IDAT", self._deflate.compress(lines.tobytes()))

    def close(self) -> Path:
        """Completes the file and returns its path."""
        self._chunk(b"IDAT", self._deflate.flush())
        self._chunk(b"IEND", b"")
        return self.finish()

    def _chunk(self, kind: bytes, content: bytes) -> None:
        if content or kind == b"IEND":
            checksum = zlib.crc32(content, zlib.crc32(kind))
            self._file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))


class TiffWriter(RowFile):
    """A TIFF of one channel in deflate-compressed tiles of 256 x 256: uint8 (with a palette) or float32.

    A BigTIFF if the file could have 4 GB or more.

    Args:
        path: The file.
        size: Height and width.
        dtype: ``uint8`` or ``float32``.
        palette: Colors of uint8 values; None: gray.
        description: ImageDescription field, ASCII.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        dtype: type[np.uint8] | type[np.float32],
        palette: Sequence[RGB] | None = None,
        description: str = "",
    ) -> None:
        super().__init__(path)
        self._size, self._palette, self._description = size, palette, description
        self._dtype = np.dtype(dtype).newbyteorder("<")
        padded = [-(-side // TIFF_TILE) * TIFF_TILE for side in size]
        # Compressed noise is slightly larger than the noise.
        self._big = padded[0] * padded[1] * self._dtype.itemsize * 1.01 + (1 << 20) >= _CLASSIC_TIFF_BYTES
        self._waiting_HW = np.zeros((TIFF_TILE, padded[1]), dtype=self._dtype)
        self._waiting = 0
        self._tiles: list[tuple[int, int]] = []
        # The offset of the directory, which is at the end of the file, is written last.
        self._file.write(
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if self._big else struct.pack("<2sHI", b"II", 42, 0)
        )

    def write(self, rows_HW: NDArray[np.uint8] | NDArray[np.float32]) -> None:
        """Appends rows."""
        while len(rows_HW):
            count = min(len(rows_HW), TIFF_TILE - self._waiting)
            self._waiting_HW[self._waiting : self._waiting + count, : self._size[1]] = rows_HW[:count]
            self._waiting += count
            rows_HW = rows_HW[count:]
            if self._waiting == TIFF_TILE:
                self._write_tiles()

    def close(self) -> Path:
        """Completes the file and returns its path."""
        if self._waiting:
            self._waiting_HW[self._waiting :] = 0
            self._write_tiles()
        self._write_directory()
        return self.finish()

    def _write_tiles(self) -> None:
        for left in range(0, self._waiting_HW.shape[1], TIFF_TILE):
            content = zlib.compress(self._waiting_HW[:, left : left + TIFF_TILE].tobytes())
            self._tiles.append((self._file.tell(), len(content)))
            self._file.write(content)
        self._waiting = 0

    def _write_directory(self) -> None:
        """Writes the fields (TIFF 6.0, sections 2, 8 and 15), preceded by values that do not fit into a field."""
        offset_type = _LONG8 if self._big else _LONG
        float_values = self._dtype.kind == "f"
        fields: list[tuple[int, int, Sequence[int] | bytes]] = [
            (256, _LONG, [self._size[1]]),
            (257, _LONG, [self._size[0]]),
            (258, _SHORT, [8 * self._dtype.itemsize]),
            (259, _SHORT, [8]),  # deflate
            (262, _SHORT, [1 if self._palette is None else 3]),  # gray, or palette
            (277, _SHORT, [1]),  # channels
            (322, _LONG, [TIFF_TILE]),
            (323, _LONG, [TIFF_TILE]),
            (324, offset_type, [offset for offset, _ in self._tiles]),
            (325, _LONG, [length for _, length in self._tiles]),
            (339, _SHORT, [3 if float_values else 1]),
        ]
        if self._description:
            fields.append((270, _ASCII, self._description.encode("ascii") + b"\0"))
        if self._palette is not None:
            colors = [*self._palette, *[(0, 0, 0)] * (256 - len(self._palette))]
            fields.append((320, _SHORT, [257 * color[channel] for channel in range(3) for color in colors]))
        count_format, word, capacity = ("<Q", "Q", 8) if self._big else ("<H", "I", 4)
        entries = b""
        for tag, kind, values in sorted(fields):
            content = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}{_LETTERS[kind]}", *values)
            if len(content) > capacity:
                self._file.write(b"\0" * (-self._file.tell() % 8))
                offset = self._file.tell()
                self._file.write(content)
                content = struct.pack(f"<{word}", offset)
            entries += struct.pack(f"<HH{word}", tag, kind, len(values)) + content.ljust(capacity, b"\0")
        self._file.write(b"\0" * (-self._file.tell() % 8))
        offset = self._file.tell()
        self._file.write(struct.pack(count_format, len(fields)) + entries + b"\0" * capacity)
        self._file.seek(8 if self._big else 4)
        self._file.write(struct.pack(f"<{word}", offset))


class Thumbnail:
    """A scaled-down copy of rows: the average, or the center pixel, of squares of ``factor`` x ``factor`` pixels.

    Args:
        size: Height and width of the picture.
        longest: Maximum side of the copy.
        average: Whether to use averages (pictures) or center pixels (class ids, depth).
    """

    def __init__(self, size: tuple[int, int], longest: int, *, average: bool) -> None:
        self.factor = -(-max(size) // longest)
        self._size, self._average = size, average
        self._waiting: list[NDArray] = []
        self._seen = 0
        self._parts: list[NDArray] = []

    def write(self, rows: NDArray) -> None:
        """Appends rows, ``(h, W)`` or ``(h, W, C)``."""
        rows = np.concatenate([*self._waiting, rows])
        self._seen += len(rows) - sum(len(part) for part in self._waiting)
        done = len(rows) if self._seen == self._size[0] else len(rows) // self.factor * self.factor
        self._waiting = [rows[done:].copy()] if done < len(rows) else []
        if done:
            self._parts.append(self._shrink(rows[:done]))

    def array(self) -> NDArray:
        """The scaled-down copy, after all rows were written."""
        return np.concatenate(self._parts)

    def _shrink(self, rows: NDArray) -> NDArray:
        if self.factor == 1:
            return rows.copy()
        ends = [np.arange(0, side, self.factor) for side in rows.shape[:2]]
        if not self._average:
            middles = [
                np.minimum(end + self.factor // 2, side - 1) for end, side in zip(ends, rows.shape[:2], strict=True)
            ]
            return rows[np.ix_(*middles)]
        sums = np.add.reduceat(np.add.reduceat(rows, ends[0], 0, dtype=np.uint32), ends[1], 1)
        counts = [np.diff([*end, side]) for end, side in zip(ends, rows.shape[:2], strict=True)]
        return (sums / np.multiply.outer(*counts)[..., None]).round().astype(rows.dtype)
