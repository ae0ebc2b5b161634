"""Shading: textures, area lights with soft shadows, ambient light, gloss and reflection.

Shapes: N rays, S light samples. Colors are linear RGB until ``tone_map``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitsplit.sample.layout import CEILING, FLOOR, NUM_PLANES, Layout, Light, Panel, Solid
from vitsplit.sample.ray_casting import into_frame, nearest, offset, openness, out_of_frame, visibility
from vitsplit.sample.solids import Vector, normal, surface_uv
from vitsplit.sample.textures import albedo

Array = NDArray[np.float32]

_FRAME = 0.05
"""Width of the frame around a panel, meters."""
_LAMP_GLOW = (3.0, 2.9, 2.7)
_SHININESS = 60


def _sphere_directions(count: int) -> Array:
    """Evenly distributed unit vectors ``(count, 3)`` (Fibonacci sphere)."""
    i = np.arange(count) + 0.5
    z, turn = 1 - 2 * i / count, i * np.pi * (3 - np.sqrt(5.0))
    rho = np.sqrt(1 - z * z)
    return np.stack([rho * np.cos(turn), rho * np.sin(turn), z], 1).astype(np.float32)


_AO_DIRECTIONS = _sphere_directions(24)


@dataclass(frozen=True)
class Surface:
    """Surface points.

    Attributes:
        id_N: Surface numbers, see ``vitsplit.sample.layout``.
        p_3N: Points in world coordinates.
        n_3N: Unit normals.
        rgb_3N: Albedo.
        gloss_N: Reflectance at normal incidence.
        glow_3N: Emitted light.
    """

    id_N: NDArray[np.int16]
    p_3N: Array
    n_3N: Array
    rgb_3N: Array
    gloss_N: Array
    glow_3N: Array


@dataclass(frozen=True)
class Lighting:
    """Lighting without texture, so that the rays of a pixel can share it."""

    diffuse_3N: Array
    gain_N: Array
    extra_3N: Array

    def reflected(self, surface: Surface) -> Array:
        """Reflected color ``rgb_3N`` (linear)."""
        rgb_3N: Array = (surface.glow_3N + surface.rgb_3N * self.diffuse_3N) * self.gain_N + self.extra_3N
        return rgb_3N


def shade(
    layout: Layout, o: Vector, d: Vector, step: slice, leaving_N: NDArray[np.int16] | None = None
) -> tuple[Surface, Lighting]:
    """Intersects rays with surfaces and computes the lighting.

    Args:
        layout: The scene.
        o: Origins, see ``nearest``.
        d: Directions.
        step: Selects light samples; averaged rays may use different ones.
        leaving_N: Starting surfaces of reflected rays, which are not reflected again.
    """
    surface = meet(layout, o, d, leaving_N)
    length = np.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    view_3N = np.stack([-d[i] / length for i in range(3)])
    diffuse_3N = _ambient(layout, surface, step)
    shine_3N = np.zeros_like(diffuse_3N)
    for light in layout.lights:
        _add_direct(layout, light, step, view_3N, surface, diffuse_3N, shine_3N)
    lighting = Lighting(diffuse_3N, np.ones_like(diffuse_3N[0]), shine_3N)
    if leaving_N is None:
        _add_reflection(layout, view_3N, surface, lighting)
    return surface, lighting


def meet(layout: Layout, o: Vector, d: Vector, leaving_N: NDArray[np.int16] | None = None) -> Surface:
    """The first surfaces on rays."""
    t, id_N = nearest(layout, o, d, leaving_N)
    return describe(layout, np.stack([o[i] + t * d[i] for i in range(3)]), id_N)


def describe(layout: Layout, p_3N: Array, id_N: NDArray[np.int16]) -> Surface:
    """Normals, colors, gloss and glow of points on the surfaces ``id_N``."""
    n_3N, rgb_3N, glow_3N = (np.zeros_like(p_3N) for _ in range(3))
    gloss_N = np.zeros(p_3N.shape[1], np.float32)
    for plane in range(NUM_PLANES):
        at = np.flatnonzero(id_N == plane)
        if at.size:
            n_3N[plane // 2, at] = 1 - 2 * (plane % 2)
            rgb_3N[:, at], gloss_N[at], glow_3N[:, at] = _plane_surface(layout, plane, p_3N[:, at])
    for k, solid in enumerate(layout.solids):
        at = np.flatnonzero(id_N == NUM_PLANES + k)
        if at.size:
            n_3N[:, at], rgb_3N[:, at] = _solid_surface(solid, p_3N[:, at])
            gloss_N[at] = solid.texture.gloss
    return Surface(id_N, p_3N, n_3N, rgb_3N, gloss_N, glow_3N)


def _plane_surface(layout: Layout, plane: int, p_3M: Array) -> tuple[Array, Array, Array]:
    texture = layout.planes[plane]
    rows = {0: [1, 2], 1: [0, 2], 2: [0, 1]}[plane // 2]
    uv_2M = p_3M[rows]
    rgb_3M = albedo(texture, uv_2M)
    gloss_M = np.full(p_3M.shape[1], texture.gloss, np.float32)
    glow_3M = np.zeros_like(p_3M)
    if plane == CEILING:
        x, y, _ = layout.lights[0].center
        lamp = (p_3M[0] - x) ** 2 + (p_3M[1] - y) ** 2 < layout.lamp_radius**2
        glow_3M[:, lamp] = np.asarray(_LAMP_GLOW, np.float32)[:, None]
    elif plane != FLOOR:
        skirting = p_3M[2] < 0.09
        rgb_3M[:, skirting] = 0.55 * rgb_3M[:, skirting] + 0.25
        for panel in layout.panels:
            if panel.wall == plane:
                _paint_panel(panel, uv_2M, rgb_3M, glow_3M)
    return rgb_3M, gloss_M, glow_3M


def _paint_panel(panel: Panel, uv_2M: Array, rgb_3M: Array, glow_3M: Array) -> None:
    (u0, z0), (u1, z1) = panel.low, panel.high
    edge = np.minimum(np.minimum(uv_2M[0] - u0, u1 - uv_2M[0]), np.minimum(uv_2M[1] - z0, z1 - uv_2M[1]))
    frame = edge > 0
    inner = np.flatnonzero(edge > _FRAME)
    if panel.glow is not None:  # the bars of a window
        bar = np.minimum(np.abs(uv_2M[0] - (u0 + u1) / 2), np.abs(uv_2M[1] - (z0 + z1) / 2)) < 0.02
        inner = inner[~bar[inner]]
    rgb_3M[:, frame] = np.asarray(panel.frame, np.float32)[:, None]
    rgb_3M[:, inner] = albedo(panel.texture, uv_2M[:, inner])
    if panel.glow is not None:
        height = (uv_2M[1, inner] - z0) / (z1 - z0)
        glow_3M[:, inner] = np.asarray(panel.glow, np.float32)[:, None] * (0.65 + 0.5 * height)


def _solid_surface(solid: Solid, p_3M: Array) -> tuple[Array, Array]:
    local_3M = np.stack(into_frame(solid, offset(solid, (p_3M[0], p_3M[1], p_3M[2]))))
    n = normal(solid.kind, solid.half, local_3M)
    uv_2M = surface_uv(solid.kind, solid.half, local_3M, solid.texture.period)
    return np.stack(out_of_frame(solid, (n[0], n[1], n[2]))), albedo(solid.texture, uv_2M)


def _ambient(layout: Layout, surface: Surface, step: slice) -> Array:
    """Ambient light: white from above, tinted by the floor from below."""
    floor = layout.planes[FLOOR]
    bounce = 0.55 * (np.asarray(floor.first, np.float32) + np.asarray(floor.second, np.float32)) / 2 + 0.25
    sky = np.asarray((0.97, 0.99, 1.02), np.float32)
    up = (0.5 + 0.5 * surface.n_3N[2])[None]
    tint_3N = bounce[:, None] * (1 - up) + sky[:, None] * up
    open_N = openness(layout, surface.p_3N, surface.n_3N, surface.id_N, _AO_DIRECTIONS[step])
    return np.float32(layout.ambient) * tint_3N * open_N


def _add_direct(
    layout: Layout,
    light: Light,
    step: slice,
    view_3N: Array,
    surface: Surface,
    diffuse_3N: Array,
    shine_3N: Array,
) -> None:
    """Adds the light of one area light: Lambertian, and Blinn highlights on glossy surfaces."""
    way_3N = light.center[:, None] - surface.p_3N
    squared = (way_3N * way_3N).sum(0)
    way_3N /= np.sqrt(squared)
    facing = np.maximum((way_3N * surface.n_3N).sum(0), 0)
    # A diffused lamp: most of the light is emitted forward, some sideways.
    lobe = 0.3 + 0.7 * np.maximum(-(np.asarray(light.axis, np.float32) @ way_3N), 0)
    seen = visibility(layout, light, step, surface.p_3N, facing > 0, surface.id_N) * lobe / (squared + 0.5)
    power = np.asarray(light.power, np.float32)[:, None]
    diffuse_3N += power * (facing * seen)
    half_3N = way_3N + view_3N
    cosine = (half_3N * surface.n_3N).sum(0) / np.sqrt((half_3N * half_3N).sum(0) + 1e-9)
    strength = (4 + 24 * surface.gloss_N) * surface.gloss_N * (facing > 0)
    shine_3N += power * (strength * seen * np.maximum(cosine, 0) ** _SHININESS)


def _add_reflection(layout: Layout, view_3N: Array, surface: Surface, lighting: Lighting) -> None:
    """Adds reflections on glossy surfaces."""
    at = np.flatnonzero(surface.gloss_N > 0)
    if not at.size:
        return
    n, view, p = surface.n_3N[:, at], view_3N[:, at], surface.p_3N[:, at]
    cosine = np.maximum((n * view).sum(0), 0)
    mirrored = 2 * cosine * n - view
    gloss = surface.gloss_N[at]
    share = np.minimum(gloss + (1 - gloss) * (1 - cosine) ** 5 * 0.6, 0.5)  # Schlick's Fresnel term, damped
    o, d = (p[0], p[1], p[2]), (mirrored[0], mirrored[1], mirrored[2])
    met, light = shade(layout, o, d, slice(None, None, 8), surface.id_N[at])
    lighting.gain_N[at] = 1 - share
    lighting.extra_3N[:, at] *= 1 - share
    lighting.extra_3N[:, at] += share * np.minimum(light.reflected(met), 1.5)


def tone_map(rgb_3N: Array) -> Array:
    """Linear light to display values in 0 to 1: compresses highlights and applies the sRGB curve."""
    white = np.float32(2.2)
    x = np.maximum(rgb_3N, 0)
    x = np.minimum(x * (1 + x / (white * white)) / (1 + np.float32(0.55) * x), 1)
    display: Array = np.where(x < 0.0031308, 12.92 * x, 1.055 * np.power(x, np.float32(1 / 2.4)) - 0.055)
    return display
