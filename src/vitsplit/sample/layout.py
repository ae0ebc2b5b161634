"""The elements of a scene: room, solids, lights and camera.

World frame: z up, meters; the room spans ``(0, 0, 0)`` to ``room``. The planes of the room are numbered 0 to 5: walls
x = 0, x = room[0], y = 0, y = room[1], then floor and ceiling. Solid k is surface ``6 + k``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitsplit.sample.solids import Half
from vitsplit.sample.textures import RGB, Texture

Array = NDArray[np.float32]
Point = tuple[float, float, float]

NUM_PLANES = 6
FLOOR, CEILING = 4, 5
NOMINAL_ASPECT = 4 / 3
"""Aspect ratio of the nominal frame for which a scene is composed; the frame is inside the image for any image size."""


@dataclass(frozen=True)
class Solid:
    """An object: an upright convex solid, rotated by ``yaw`` (radians) about its axis.

    ``color`` is the name of its color; ``on`` the index of the solid below it, None for the floor.
    """

    kind: str
    center: Point
    half: Half
    yaw: float
    texture: Texture
    color: str
    on: int | None = None

    @property
    def bound(self) -> float:
        """Radius of the bounding sphere."""
        if self.kind == "ball":
            return self.half[0]
        if self.kind == "box":
            return float(np.hypot(np.hypot(self.half[0], self.half[1]), self.half[2]))
        return float(np.hypot(self.half[0], self.half[2]))

    @property
    def footprint(self) -> float:
        """Radius of the bounding circle on the ground."""
        return float(np.hypot(self.half[0], self.half[1])) if self.kind == "box" else self.half[0]


@dataclass(frozen=True)
class Panel:
    """A framed rectangle on a wall: a picture, a door, or (with ``glow``) a window.

    ``low`` and ``high`` are ``(u, z)`` corners in meters, u along the wall (world y on walls 0 and 1, else world x).
    """

    wall: int
    low: tuple[float, float]
    high: tuple[float, float]
    texture: Texture
    frame: RGB
    glow: RGB | None = None


@dataclass(frozen=True)
class Light:
    """An area light.

    Attributes:
        points_S3: Sample points; strided subsets are evenly distributed too.
        center: Its middle, ``(3,)``.
        radius: Maximum distance of a point from the center, in meters.
        axis: Unit normal.
        power: Linear RGB.
    """

    points_S3: Array
    center: Array
    radius: float
    axis: Point
    power: RGB


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: Position in the room.
        axes_33: Rows: right, down and forward unit vectors in world coordinates.
        focal: Focal length relative to the height of the nominal frame.
    """

    position: Point
    axes_33: Array
    focal: float

    def focal_px(self, size: tuple[int, int]) -> float:
        """Focal length in pixels of an image of size ``(H, W)``: the nominal frame fits inside it."""
        return self.focal * min(size[0], size[1] / NOMINAL_ASPECT)

    def rays(self, rows_N: Array, columns_N: Array, size: tuple[int, int]) -> tuple[Array, Array, Array]:
        """Ray directions ``(x, y, z)`` through image positions in pixels; (0.5, 0.5) is the center of the first pixel.

        Their component along the optical axis is 1, so the ray parameter is the depth in meters.
        """
        focal = self.focal_px(size)
        right = ((columns_N - size[1] / 2) / focal).astype(np.float32)
        down = ((rows_N - size[0] / 2) / focal).astype(np.float32)
        axes = self.axes_33
        x, y, z = (right * axes[0, i] + down * axes[1, i] + axes[2, i] for i in range(3))
        return x, y, z

    def project(self, point: Point) -> tuple[float, float, float]:
        """``(x, y, depth)`` of a point, x and y relative to the center and height of the nominal frame, y down."""
        right, down, depth = self.axes_33.astype(float) @ (np.asarray(point) - np.asarray(self.position))
        return float(self.focal * right / depth), float(self.focal * down / depth), float(depth)


@dataclass(frozen=True)
class Layout:
    """A scene without its image; ``planes`` are the six textures of the room."""

    room: Point
    planes: tuple[Texture, ...]
    panels: tuple[Panel, ...]
    solids: tuple[Solid, ...]
    lights: tuple[Light, ...]
    lamp_radius: float
    ambient: float
    camera: Camera
