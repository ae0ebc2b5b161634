"""Procedural textures: surface coordinates (meters) to color (linear RGB)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
RGB = tuple[float, float, float]

_TILE = 256


@dataclass(frozen=True)
class Texture:
    """A pattern of two colors.

    Attributes:
        kind: A key of ``PATTERNS``.
        first: Main color, linear RGB.
        second: The other color.
        period: Period of the pattern in meters.
        angle: Rotation of the pattern on the surface, radians.
        shift: Offset in the infinite pattern, different for each surface.
        gloss: Reflectance at normal incidence, 0 for matte.
    """

    kind: str
    first: RGB
    second: RGB
    period: float
    angle: float = 0.0
    shift: float = 0.0
    gloss: float = 0.0


def albedo(texture: Texture, uv_2N: Array) -> Array:
    """Color ``rgb_3N`` (linear, 0 to 1) of a texture at ``uv_2N`` (meters)."""
    cos, sin = np.float32(np.cos(texture.angle)), np.float32(np.sin(texture.angle))
    u = (cos * uv_2N[0] + sin * uv_2N[1]) / np.float32(texture.period)
    v = (cos * uv_2N[1] - sin * uv_2N[0]) / np.float32(texture.period)
    # The shift is an even number of cells, which changes the noise but not the phase (patterns must close around
    # solids).
    shift = np.float32(2 * round(texture.shift))
    mix, shade = PATTERNS[texture.kind](u + shift, v + shift)
    first = np.asarray(texture.first, np.float32)[:, None]
    second = np.asarray(texture.second, np.float32)[:, None]
    rgb_3N: Array = np.clip((first + (second - first) * mix) * shade, 0, 1)
    return rgb_3N


@lru_cache(maxsize=1)
def _noise_tile() -> Array:
    """Fractal value noise in [0, 1] with mean about 0.5, periodic; the same in every process."""
    rng = np.random.default_rng(20240607)
    tile = np.zeros((_TILE, _TILE), np.float64)
    for octave in range(6):
        cells = 8 << octave
        grid = rng.random((cells, cells))
        at = np.arange(_TILE) * cells / _TILE
        low = at.astype(int)
        weight = (at - low) ** 2 * (3 - 2 * (at - low))
        rows = grid[low] * (1 - weight)[:, None] + grid[(low + 1) % cells] * weight[:, None]
        tile += (rows[:, low] * (1 - weight) + rows[:, (low + 1) % cells] * weight - 0.5) * 0.55**octave
    return np.clip(0.5 + tile / (4 * tile.std()), 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _hash_table() -> Array:
    return np.random.default_rng(20240608).random(4096, dtype=np.float32)


def noise(u: Array, v: Array) -> Array:
    """Fractal noise in [0, 1]; the largest features are about one unit wide."""
    tile = _noise_tile()
    x, y = u * np.float32(32.0), v * np.float32(32.0)
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    i, j = x0.astype(np.int32) & (_TILE - 1), y0.astype(np.int32) & (_TILE - 1)
    i1, j1 = (i + 1) & (_TILE - 1), (j + 1) & (_TILE - 1)
    flat, row, row1 = tile.ravel(), j * _TILE, j1 * _TILE
    top = flat[row + i] * (1 - fx) + flat[row + i1] * fx
    low = flat[row1 + i] * (1 - fx) + flat[row1 + i1] * fx
    value: Array = top * (1 - fy) + low * fy
    return value


def _cell_hash(i: Array, j: Array, salt: int = 0) -> Array:
    """A pseudorandom number in [0, 1) per cell."""
    key = i.astype(np.int32) * np.int32(1619) ^ j.astype(np.int32) * np.int32(7907) ^ np.int32(salt * 911)
    return _hash_table()[key & 4095]


def _step(low: float, high: float, x: Array) -> Array:
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


Pattern = Callable[[Array, Array], tuple[Array, Array]]
"""Cell coordinates to (fraction of the second color, brightness factor)."""


def _plain(u: Array, v: Array) -> tuple[Array, Array]:
    n = noise(u, v)
    return 0.25 * n, 0.93 + 0.14 * n


def _plaster(u: Array, v: Array) -> tuple[Array, Array]:
    n = noise(u * np.float32(0.7), v * np.float32(0.7))
    return _step(0.3, 0.7, n), 0.9 + 0.2 * noise(u * np.float32(3.1), v * np.float32(3.1))


def _stripes(u: Array, v: Array) -> tuple[Array, Array]:
    return (u - np.floor(u) > 0.5).astype(np.float32), 0.96 + 0.08 * noise(u, v)


def _checks(u: Array, v: Array) -> tuple[Array, Array]:
    odd = (np.floor(u).astype(np.int32) + np.floor(v).astype(np.int32)) & 1
    return odd.astype(np.float32), 0.92 + 0.16 * noise(u * np.float32(0.6), v * np.float32(0.6))


def _dots(u: Array, v: Array) -> tuple[Array, Array]:
    j = np.floor(v)
    x = u + 0.5 * np.mod(j, 2)
    du, dv = x - np.floor(x) - 0.5, v - j - 0.5
    return (du * du + dv * dv < 0.085).astype(np.float32), 0.95 + 0.1 * noise(u, v)


def _joints(fu: NDArray[np.floating], fv: NDArray[np.floating], width_u: float, width_v: float) -> Array:
    """1 inside a cell, 0.45 on the joint between cells."""
    inside = (np.abs(fu - 0.5) < 0.5 - width_u) & (np.abs(fv - 0.5) < 0.5 - width_v)
    return np.where(inside, np.float32(1.0), np.float32(0.45))


def _tiles(u: Array, v: Array) -> tuple[Array, Array]:
    i, j = np.floor(u), np.floor(v)
    tone = _cell_hash(i, j)
    shade = (0.84 + 0.2 * tone) * (0.93 + 0.14 * noise(u + 7 * tone, v))
    return (_cell_hash(i, j, 1) > 0.7).astype(np.float32), shade * _joints(u - i, v - j, 0.02, 0.02)


def _brick(u: Array, v: Array) -> tuple[Array, Array]:
    j = np.floor(v)
    x = 0.45 * u + 0.5 * np.mod(j, 2)
    i = np.floor(x)
    tone = _cell_hash(i, j)
    shade = (0.75 + 0.35 * tone) * (0.85 + 0.3 * noise(u * np.float32(1.7), v * np.float32(1.7)))
    return 0.6 * _cell_hash(i, j, 2), shade * _joints(x - i, v - j, 0.03, 0.06)


def _planks(u: Array, v: Array) -> tuple[Array, Array]:
    j = np.floor(v)
    x = u / 7 + _cell_hash(j, j)
    i = np.floor(x)
    tone = _cell_hash(i, j, 3)
    grain = noise(u * np.float32(0.15) + 9 * tone, v * np.float32(1.6) + 5 * tone)
    rings = 0.5 + 0.5 * np.sin(np.float32(40.0) * grain)
    shade = (0.78 + 0.3 * tone) * (0.88 + 0.16 * rings)
    return _step(0.25, 0.8, grain) * 0.8, shade * _joints(x - i, v - j, 0.003, 0.02)


def _grain(u: Array, v: Array) -> tuple[Array, Array]:
    """Wood without joints, for objects."""
    rings = 0.5 + 0.5 * np.sin(np.float32(30.0) * noise(u * np.float32(0.12), v * np.float32(0.9)))
    return 0.85 * rings, 0.92 + 0.16 * noise(u * np.float32(0.4), v * np.float32(3.0))


def _marble(u: Array, v: Array) -> tuple[Array, Array]:
    n = noise(u * np.float32(0.35), v * np.float32(0.35))
    vein = np.abs(np.sin(np.float32(2.2) * u + np.float32(1.1) * v + np.float32(14.0) * n))
    return 1 - np.sqrt(vein), 0.92 + 0.14 * n


def _terrazzo(u: Array, v: Array) -> tuple[Array, Array]:
    i, j = np.floor(u), np.floor(v)
    tone = _cell_hash(i, j, 4)
    du = u - i - 0.3 - 0.4 * _cell_hash(i, j, 5)
    dv = v - j - 0.3 - 0.4 * _cell_hash(i, j, 6)
    chip = np.abs(du + (tone - 0.5) * dv) + np.abs(dv) < 0.1 + 0.22 * tone
    return np.where(chip, 0.3 + 0.7 * tone, 0).astype(np.float32), 0.95 + 0.1 * noise(u, v)


def _weave(u: Array, v: Array) -> tuple[Array, Array]:
    over = np.sin(np.float32(2 * np.pi) * u) * np.sin(np.float32(2 * np.pi) * v)
    return _step(-0.5, 0.5, over), 0.88 + 0.24 * noise(u * np.float32(0.5), v * np.float32(0.5))


def _hexagons(u: Array, v: Array) -> tuple[Array, Array]:
    """Honeycomb: the nearest center of two interleaved lattices."""
    root3 = np.float32(np.sqrt(3.0))
    y = v / root3
    i0, j0 = np.rint(u), np.rint(y)
    i1, j1 = np.floor(u) + 0.5, np.floor(y) + 0.5
    near = (u - i0) ** 2 + 3 * (y - j0) ** 2 < (u - i1) ** 2 + 3 * (y - j1) ** 2
    i, j = np.where(near, i0, i1), np.where(near, j0, j1)
    x, z = np.abs(u - i), np.abs(y - j) * root3
    rim = np.maximum(x, 0.5 * x + 0.5 * root3 * z)
    tone = _cell_hash(2 * i, 2 * j)
    shade = (0.8 + 0.3 * tone) * np.where(rim > 0.47, np.float32(0.5), np.float32(1.0))
    return (tone > 0.6).astype(np.float32), shade


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "plaster": _plaster,
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "tiles": _tiles,
    "brick": _brick,
    "planks": _planks,
    "grain": _grain,
    "marble": _marble,
    "terrazzo": _terrazzo,
    "weave": _weave,
    "hexagons": _hexagons,
}
"""Texture kinds."""
