"""Ray casting: nearest surfaces, visibility of lights, and ambient occlusion.

Shapes: N rays or points, S samples. Vectors are tuples ``(x, y, z)`` of float32 arrays; points also ``p_3N``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitsplit.sample.layout import NUM_PLANES, Layout, Light, Solid
from vitsplit.sample.solids import Vector, interval

Array = NDArray[np.float32]
Indices = NDArray[np.intp]

_AO_REACH = 0.55
"""Reach of ambient occlusion by solids, in meters."""


def into_frame(solid: Solid, v: Vector) -> Vector:
    """Rotates a vector from the world to a solid's frame (points must be relative to its center)."""
    cos, sin = float(np.cos(solid.yaw)), float(np.sin(solid.yaw))
    return cos * v[0] + sin * v[1], cos * v[1] - sin * v[0], v[2]


def out_of_frame(solid: Solid, v: Vector) -> Vector:
    """Inverse of ``into_frame``."""
    cos, sin = float(np.cos(solid.yaw)), float(np.sin(solid.yaw))
    return cos * v[0] - sin * v[1], cos * v[1] + sin * v[0], v[2]


def offset(solid: Solid, p: Vector) -> Vector:
    """Points relative to a solid's center, in world axes."""
    return p[0] - solid.center[0], p[1] - solid.center[1], p[2] - solid.center[2]


def nearest(
    layout: Layout, o: Vector, d: Vector, leaving_N: NDArray[np.int16] | None = None
) -> tuple[Array, NDArray[np.int16]]:
    """Finds the first surface on each ray.

    Args:
        layout: The scene.
        o: Origins inside the room, each of shape ``(N,)`` or ``(1,)``.
        d: Directions of shape ``(N,)``.
        leaving_N: Surfaces that the rays start on, which are skipped (all are convex).

    Returns:
        ``t_N`` in units of the direction's length, and ``id_N`` (surface numbers, see ``vitsplit.sample.layout``).
    """
    t_N, id_N = _room(layout, o, d)
    dd = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    for k, solid in enumerate(layout.solids):
        q = offset(solid, o)
        along = q[0] * d[0] + q[1] * d[1] + q[2] * d[2]
        gap = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] - solid.bound**2
        near = along * along > dd * gap
        if leaving_N is not None:
            near &= leaving_N != NUM_PLANES + k
        rays = np.flatnonzero(near)
        if not rays.size:
            continue
        start: Vector = q if q[0].shape == (1,) else (q[0][rays], q[1][rays], q[2][rays])
        way: Vector = (d[0][rays], d[1][rays], d[2][rays])
        entry, leave = interval(solid.kind, solid.half, into_frame(solid, start), into_frame(solid, way))
        hit = (entry < leave) & (entry > 0) & (entry < t_N[rays])
        t_N[rays[hit]] = entry[hit]
        id_N[rays[hit]] = NUM_PLANES + k
    return t_N, id_N


def _room(layout: Layout, o: Vector, d: Vector) -> tuple[Array, NDArray[np.int16]]:
    """Intersection of rays with the planes of the room."""
    best = np.full(d[0].shape, np.inf, np.float32)
    plane = np.zeros(d[0].shape, np.int16)
    for axis in range(3):
        positive = d[axis] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (np.where(positive, np.float32(layout.room[axis]), np.float32(0)) - o[axis]) / d[axis]
        closer = (t < best) & (d[axis] != 0)  # a parallel ray meets it nowhere, and t may be -inf
        best = np.where(closer, t, best)
        plane = np.where(closer, (2 * axis + positive).astype(np.int16), plane)
    return best, plane


def visibility(
    layout: Layout,
    light: Light,
    step: slice,
    p_3N: Array,
    facing_N: NDArray[np.bool_],
    id_N: NDArray[np.int16],
) -> Array:
    """Fraction of an area light that is visible from points, ``(N,)`` in 0 to 1.

    ``step`` selects samples of the light; only points of ``facing_N`` are tested. Shadows of several solids are
    multiplied, which is exact except for overlapping penumbrae.
    """
    visible_N = np.ones(p_3N.shape[1], np.float32)
    center = light.center
    v = p_3N - center[:, None]
    length = np.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    for k, solid in enumerate(layout.solids):
        axis = np.asarray(solid.center, np.float32) - center
        distance = float(np.sqrt((axis**2).sum()))
        # Bounding cone of the solid's shadow and penumbra.
        sine = min(1.0, (solid.bound + light.radius) / distance)
        cosine = distance * float(np.sqrt(1 - sine * sine))
        inside = v[0] * axis[0] + v[1] * axis[1] + v[2] * axis[2] > length * cosine
        inside &= facing_N
        inside &= id_N != NUM_PLANES + k
        points = np.flatnonzero(inside)
        if points.size:
            visible_N[points] *= _unblocked(solid, light.points_S3[step], p_3N[:, points])
    return visible_N


def _unblocked(solid: Solid, light_S3: Array, p_3M: Array) -> Array:
    p = offset(solid, (p_3M[0], p_3M[1], p_3M[2]))
    target = offset(solid, (light_S3[:, 0], light_S3[:, 1], light_S3[:, 2]))
    start, end = into_frame(solid, p), into_frame(solid, target)
    way: Vector = (end[0][:, None] - start[0], end[1][:, None] - start[1], end[2][:, None] - start[2])
    entry, leave = interval(solid.kind, solid.half, start, way)
    blocked = (entry < leave) & (leave > 0)  # lights are on the room's planes: nothing is behind them
    return np.float32(1) - blocked.mean(0, dtype=np.float32)


def openness(layout: Layout, p_3N: Array, n_3N: Array, id_N: NDArray[np.int16], directions_S3: Array) -> Array:
    """Ambient light at points, ``(N,)`` in 0 to 1: reduced in corners of the room and near solids."""
    open_N = np.ones(p_3N.shape[1], np.float32)
    for axis in range(3):
        for sign, distance in ((1, p_3N[axis]), (-1, np.float32(layout.room[axis]) - p_3N[axis])):
            # A plane at a right angle hides half of the (cosine-weighted) hemisphere of a point that touches it.
            open_N *= 1 - (0.35 - 0.35 * sign * n_3N[axis]) * np.exp(distance * np.float32(-2.2))
    for k, solid in enumerate(layout.solids):
        q = offset(solid, (p_3N[0], p_3N[1], p_3N[2]))
        close = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] < (solid.bound + _AO_REACH) ** 2
        close &= id_N != NUM_PLANES + k
        points = np.flatnonzero(close)
        if points.size:
            at: Vector = (q[0][points], q[1][points], q[2][points])
            open_N[points] *= 1 - np.float32(0.9) * _hidden(solid, at, n_3N[:, points], directions_S3)
    return open_N


def _hidden(solid: Solid, q: Vector, n_3M: Array, directions_S3: Array) -> Array:
    """Cosine-weighted fraction of the hemisphere covered by a solid, weighted by distance."""
    weight = directions_S3 @ n_3M  # each direction or its opposite lies in the hemisphere
    sign = np.sign(weight)
    x, y, z = (directions_S3[:, i : i + 1] * sign for i in range(3))
    entry, leave = interval(solid.kind, solid.half, into_frame(solid, q), into_frame(solid, (x, y, z)))
    weight = np.abs(weight)
    near = np.where((entry < leave) & (leave > 0), 1 - np.maximum(entry, 0) * np.float32(1 / _AO_REACH), 0)
    hidden: Array = (np.maximum(near, 0) * weight).sum(0) / weight.sum(0)
    return hidden
