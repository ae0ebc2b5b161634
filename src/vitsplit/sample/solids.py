"""The four convex solids: ray intersections, normals and texture coordinates.

A solid is defined in its own frame: center at the origin, axis along z, half extents ``half = (hx, hy, hz)`` in
meters. Rays and points are tuples ``(x, y, z)`` of float32 arrays that broadcast against each other.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Vector = tuple[Array, Array, Array]
Half = tuple[float, float, float]
Interval = tuple[Array, Array]
"""Ray parameters of entry and exit. The ray misses where ``entry < exit`` is false, which includes nan."""


def _slab(o: Array, d: Array, half: float) -> Interval:
    inverse = 1.0 / d
    middle = -o * inverse
    reach = half * np.abs(inverse)
    return middle - reach, middle + reach


def _ball(o: Vector, d: Vector, half: Half) -> Interval:
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    closest = -(o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) / a
    x, y, z = (o[i] + closest * d[i] for i in range(3))
    reach = np.sqrt((half[0] ** 2 - (x * x + y * y + z * z)) / a)
    return closest - reach, closest + reach


def _box(o: Vector, d: Vector, half: Half) -> Interval:
    entry, leave = _slab(o[0], d[0], half[0])
    for i in (1, 2):
        low, high = _slab(o[i], d[i], half[i])
        entry, leave = np.maximum(entry, low), np.minimum(leave, high)
    return entry, leave


def _cylinder(o: Vector, d: Vector, half: Half) -> Interval:
    a = d[0] * d[0] + d[1] * d[1]
    closest = -(o[0] * d[0] + o[1] * d[1]) / a
    x, y = o[0] + closest * d[0], o[1] + closest * d[1]
    reach = np.sqrt((half[0] ** 2 - (x * x + y * y)) / a)
    low, high = _slab(o[2], d[2], half[2])
    return np.maximum(closest - reach, low), np.minimum(closest + reach, high)


def _cone(o: Vector, d: Vector, half: Half) -> Interval:
    slope = (half[0] / (2 * half[2])) ** 2
    w = half[2] - o[2]  # distance below the apex; along the ray it grows by -d[2]
    a = d[0] * d[0] + d[1] * d[1] - slope * d[2] * d[2]
    b = o[0] * d[0] + o[1] * d[1] + slope * w * d[2]
    c = o[0] * o[0] + o[1] * o[1] - slope * w * w
    root = np.sqrt(b * b - a * c)
    entry, leave = (-b - root) / a, (-b + root) / a
    # A ray steeper than the side (a < 0) is inside the double cone outside of its two roots, one per nappe: going down
    # it enters the lower nappe at the later root, going up it leaves it at the earlier one.
    steep, down = a < 0, d[2] < 0
    entry = np.where(steep & ~down, -np.inf, entry)
    leave = np.where(steep & down, np.inf, leave)
    low, high = _slab(o[2], d[2], half[2])
    return np.maximum(entry, low), np.minimum(leave, high)


_INTERVALS: dict[str, Callable[[Vector, Vector, Half], Interval]] = {
    "ball": _ball,
    "box": _box,
    "cylinder": _cylinder,
    "cone": _cone,
}
KINDS: tuple[str, ...] = tuple(_INTERVALS)


def interval(kind: str, half: Half, o: Vector, d: Vector) -> Interval:
    """Where the rays ``o + t d`` are inside a solid: ``(entry, exit)`` in units of t, see ``Interval``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _INTERVALS[kind](o, d, half)


def normal(kind: str, half: Half, p_3N: Array) -> Array:
    """Unit outward normals ``n_3N`` at surface points ``p_3N``, both in the solid's frame."""
    if kind == "ball":
        return p_3N / np.float32(half[0])
    n_3N = np.zeros_like(p_3N)
    if kind == "box":
        axis = _face_axis(half, p_3N)
        columns = np.arange(p_3N.shape[1])
        n_3N[axis, columns] = np.sign(p_3N[axis, columns])
        return n_3N
    rho = np.hypot(p_3N[0], p_3N[1]) + np.float32(1e-9)
    flat = _on_cap(kind, half, p_3N, rho)
    length = np.hypot(2 * half[2], half[0]) if kind == "cone" else 1.0
    side_xy, side_z = (2 * half[2] / length, half[0] / length) if kind == "cone" else (1.0, 0.0)
    n_3N[:2] = p_3N[:2] / rho * np.float32(side_xy)
    n_3N[2] = side_z
    n_3N[:2, flat] = 0
    n_3N[2, flat] = np.sign(p_3N[2, flat])
    return n_3N


def surface_uv(kind: str, half: Half, p_3N: Array, period: float) -> Array:
    """Texture coordinates ``uv_2N`` in meters, with whole periods around an axis to avoid seams."""
    x, y, z = p_3N
    if kind == "box":
        axis = _face_axis(half, p_3N)
        return np.stack([np.where(axis == 0, y, x), np.where(axis == 2, y, z)])
    circumference = 2 * np.pi * half[0]
    # An even count keeps checkerboards continuous across the seam.
    turns = 2 * max(1, round(circumference / period / 2))
    around = np.arctan2(y, x) * np.float32(turns * period / (2 * np.pi))
    if kind == "ball":
        return np.stack([around, np.arcsin(np.clip(z / half[0], -1, 1)) * np.float32(half[0])])
    rho = np.hypot(x, y)
    flat = _on_cap(kind, half, p_3N, rho)
    return np.stack([np.where(flat, x, around), np.where(flat, y, z)])


def _face_axis(half: Half, p_3N: Array) -> NDArray[np.intp]:
    axis: NDArray[np.intp] = np.argmax(np.abs(p_3N) / np.asarray(half, np.float32)[:, None], axis=0)
    return axis


def _on_cap(kind: str, half: Half, p_3N: Array, rho: Array) -> NDArray[np.bool_]:
    """Whether points lie on a flat end (of a cone: its base) rather than on the curved side."""
    z = p_3N[2]
    if kind == "cone":
        side_gap = np.abs(rho - half[0] * (half[2] - z) / (2 * half[2]))
        flat: NDArray[np.bool_] = np.abs(z + half[2]) < side_gap
        return flat
    return np.abs(np.abs(z) - half[2]) < np.abs(rho - half[0])
