"""A slow, scalar ray caster that shares no code with the package: marching and bisection with inside tests."""

import math

import numpy as np


def inside(kind, half, x, y, z):
    hx, hy, hz = half
    if kind == "ball":
        return x * x + y * y + z * z < hx * hx
    if kind == "box":
        return (np.abs(x) < hx) & (np.abs(y) < hy) & (np.abs(z) < hz)
    rho = np.hypot(x, y)
    if kind == "cylinder":
        return (rho < hx) & (np.abs(z) < hz)
    assert kind == "cone"
    return (rho < hx * (hz - z) / (2 * hz)) & (np.abs(z) < hz)


def inside_solid(solid, point_N3):
    x, y, z = (np.asarray(point_N3, float) - np.asarray(solid.center)).T
    cos, sin = math.cos(-solid.yaw), math.sin(-solid.yaw)
    return inside(solid.kind, solid.half, cos * x - sin * y, sin * x + cos * y, z)


def first_inside(test, low, high, step):
    """Smallest t in [low, high] for which test(t) is true, or None: march, then bisect."""
    t = np.arange(low, high, step)
    hits = np.flatnonzero(test(t))
    if not hits.size:
        return None
    b = t[hits[0]]
    a = b - step
    for _ in range(40):
        middle = (a + b) / 2
        a, b = (a, middle) if test(np.array([middle]))[0] else (middle, b)
    return b


def pixel_ray(layout, row, column, size):
    """Origin and direction (with component 1 along the optical axis) through the center of a pixel."""
    camera = layout.camera
    right, down, forward = camera.axes_33.astype(float)
    focal = camera.focal * min(size[0], 0.75 * size[1])
    x = (column + 0.5 - size[1] / 2) / focal
    y = (row + 0.5 - size[0] / 2) / focal
    return np.array(camera.position), forward + x * right + y * down


def plane_hit(layout, origin, direction):
    """(t, plane) of the room's first plane, each solved on its own."""
    found = []
    for axis in range(3):
        for side, value in enumerate((0.0, layout.room[axis])):
            t = (value - origin[axis]) / direction[axis]
            if t > 0:
                found.append((t, 2 * axis + side))
    return min(found)


def cast(layout, row, column, size):
    """(depth, surface number) at a pixel."""
    origin, direction = pixel_ray(layout, row, column, size)
    best, surface = plane_hit(layout, origin, direction)
    for k, solid in enumerate(layout.solids):
        hit = first_inside(lambda t, s=solid: inside_solid(s, origin + t[:, None] * direction), 0.0, best, 0.002)
        if hit is not None and hit < best:
            best, surface = hit, 6 + k
    return best, surface
