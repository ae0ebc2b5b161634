"""Random layouts: room, solids, lights and camera."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitsplit.sample.appearance import lights, paint_room, paint_solid
from vitsplit.sample.layout import NOMINAL_ASPECT, NUM_PLANES, Camera, Layout, Point, Solid
from vitsplit.sample.render import trace
from vitsplit.sample.solids import KINDS, Half

Rng = np.random.Generator

OBJECTS = (3, 7)
"""Minimum and maximum number of objects, unless given."""
COVER = (0.014, 0.085)
"""Minimum and maximum fraction of the nominal frame covered by an unoccluded object (estimated), unless given."""
_SEEN = 0.009
"""Minimum visible fraction of the nominal frame; other objects are removed."""
_PREVIEW = (96, 128)
_TRIES = 25


def random_layout(rng: Rng, objects: tuple[int, int] = OBJECTS, cover: tuple[float, float] = COVER) -> Layout:
    """A room with objects, each visible in at least 0.9 % of the nominal frame.

    Args:
        rng: Source of randomness.
        objects: Minimum (at least 1) and maximum number of objects.
        cover: Minimum and maximum fraction of the nominal frame covered by an unoccluded object (estimated).
    """
    fewest, most = objects
    # Hidden objects are removed: with one more, fewer scenes are rejected. A single object is rarely hidden.
    lowest = 1 if fewest == 1 else min(fewest + 1, most)
    while True:
        room = (float(rng.uniform(4.2, 7.0)), float(rng.uniform(4.2, 7.0)), float(rng.uniform(2.3, 2.9)))
        camera = _camera(rng, room)
        solids = _stand(rng, room, camera, int(rng.integers(lowest, most + 1)), cover)
        planes, panels = paint_room(rng, room)
        lamps, lamp_radius, ambient = lights(rng, room, panels)
        layout = Layout(room, planes, panels, solids, lamps, lamp_radius, ambient, camera)
        layout = _without_hidden(layout)
        if len(layout.solids) >= fewest:
            return layout


def _camera(rng: Rng, room: Point) -> Camera:
    """A camera near a wall or corner, at table to eye height, looking across the room and down."""
    heading = float(rng.uniform(0, 2 * np.pi))
    middle = np.array([room[0] / 2, room[1] / 2])
    back = np.array([np.cos(heading), np.sin(heading)])
    reach = np.min((middle - 0.35) / np.maximum(np.abs(back), 1e-6))
    place = middle + back * reach * rng.uniform(0.85, 1.0)
    position = np.array([*place, rng.uniform(1.0, 1.9)])
    target = np.array([*(middle - back * 0.3 + rng.normal(0, 0.35, 2)), rng.uniform(0.2, 1.0)])
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    roll = np.deg2rad(rng.uniform(-3, 3))
    axes = np.stack([np.cos(roll) * right + np.sin(roll) * down, np.cos(roll) * down - np.sin(roll) * right, forward])
    x, y, z = (float(value) for value in position)
    return Camera((x, y, z), axes.astype(np.float32), float(rng.uniform(0.74, 1.05)))


def _stand(rng: Rng, room: Point, camera: Camera, count: int, cover: tuple[float, float]) -> tuple[Solid, ...]:
    """Places up to ``count`` solids on the floor and on boxes, without overlap and inside the frame."""
    solids: list[Solid] = []
    for _ in range(count):
        # Retry with the same kind, so that shapes that fit less easily are not rarer.
        kind = KINDS[rng.integers(len(KINDS))]
        for _ in range(_TRIES):
            free = [k for k, s in enumerate(solids) if s.kind == "box" and all(other.on != k for other in solids)]
            if free and rng.random() < 0.5:
                on = int(rng.choice(free))
                solid = _on_box(rng, kind, solids[on], on)
            else:
                solid = _on_floor(rng, kind, room)
            if _fits(solid, solids, room, camera, cover):
                solids.append(solid)
                break
    return tuple(solids)


def _half(rng: Rng, kind: str, scale: float) -> Half:
    """Half extents in meters of a solid of maximum width ``2 * scale``."""
    if kind == "ball":
        return scale, scale, scale
    if kind == "box":
        return (
            scale * float(rng.uniform(0.6, 1.0)),
            scale * float(rng.uniform(0.6, 1.0)),
            scale * float(rng.uniform(0.45, 1.2)),
        )
    if kind == "cylinder":
        radius = scale * float(rng.uniform(0.5, 0.95))
        return radius, radius, scale * float(rng.uniform(0.5, 1.3))
    radius = scale * float(rng.uniform(0.65, 1.0))
    return radius, radius, scale * float(rng.uniform(0.8, 1.35))


def _solid(rng: Rng, kind: str, half: Half, foot: Point, on: int | None) -> Solid:
    texture, color = paint_solid(rng, max(half))
    center = (foot[0], foot[1], foot[2] + half[2])
    return Solid(kind, center, half, float(rng.uniform(0, 2 * np.pi)), texture, color, on)


def _on_floor(rng: Rng, kind: str, room: Point) -> Solid:
    half = _half(rng, kind, float(np.exp(rng.uniform(np.log(0.22), np.log(0.55)))))
    x, y = (float(rng.uniform(0.1, extent - 0.1)) for extent in room[:2])
    return _solid(rng, kind, half, (x, y, 0.0), None)


def _on_box(rng: Rng, kind: str, box: Solid, on: int) -> Solid:
    half = _half(rng, kind, min(box.half[0], box.half[1]) * float(rng.uniform(0.6, 0.95)))
    if kind == "box":  # for any rotation, its corners stay on top
        half = (half[0] * 0.7, half[1] * 0.7, half[2])
    return _solid(rng, kind, half, (box.center[0], box.center[1], box.center[2] + box.half[2]), on)


def _fits(solid: Solid, others: list[Solid], room: Point, camera: Camera, cover: tuple[float, float]) -> bool:
    """Whether a solid is inside the room, away from the camera and other solids, and has a valid size in the frame."""
    (x, y, z), reach = solid.center, solid.footprint
    if min(x, y, room[0] - x, room[1] - y) < reach + 0.03 or z + solid.half[2] > room[2] - 0.2:
        return False
    if solid.on is None and any(
        np.hypot(x - other.center[0], y - other.center[1]) < reach + other.footprint + 0.05 for other in others
    ):
        return False
    across, below, depth = camera.project(solid.center)
    if depth < 1.2:
        return False
    width, height = camera.focal * reach / depth, camera.focal * solid.half[2] / depth
    if abs(across) > NOMINAL_ASPECT / 2 - 0.7 * width or abs(below) > 0.5 - 0.7 * height:
        return False
    filled = {"ball": np.pi / 4, "cone": 0.55, "cylinder": 1.0, "box": 0.9}[solid.kind]
    return bool(cover[0] < 4 * width * height * filled / NOMINAL_ASPECT < cover[1])


def _without_hidden(layout: Layout) -> Layout:
    """Removes barely visible solids, with the solids on them."""
    surface_HW, _ = trace(layout, _PREVIEW)
    seen = np.bincount(surface_HW.ravel(), minlength=NUM_PLANES + len(layout.solids)) / surface_HW.size
    kept: list[int] = []
    for k, solid in enumerate(layout.solids):  # solids on a box come after it
        if seen[NUM_PLANES + k] >= _SEEN and (solid.on is None or solid.on in kept):
            kept.append(k)
    solids = tuple(
        replace(solid, on=None if solid.on is None else kept.index(solid.on))
        for solid in (layout.solids[k] for k in kept)
    )
    return replace(layout, solids=solids)
